//! Requests to an address that several nodes may serve, answered by whoever gets them.

use crate::{
    event::Event,
    members,
    tunnel::{Header, Packet},
    world::World,
};
use agent_core::BootTime;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Ids of flows lie below.
const FIRST_ID: u64 = 1 << 63;

#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) from: usize,
    pub(crate) to: IpAddr,
    pub(crate) interval: Duration,
    pub(crate) is_on: bool,
    /// What it sends is never answered, and counts as answered where it arrives.
    is_one_way: bool,
    pub(crate) started_at: BootTime,
    pub(crate) answered_at: BootTime,
    /// Who could answer, and since when; see `claims`.
    pub(crate) good_since: BTreeMap<usize, BootTime>,
    /// Who has withdrawn, and could say so, since when; see `withdrawn`.
    pub(crate) withdrawn_since: BTreeMap<usize, BootTime>,
    /// Whom its requests go to, and since when.
    pub(crate) goes_to: Option<(usize, BootTime)>,
    sent: u64,
    answered: u64,
    longest_gap: Duration,
    outstanding: BTreeSet<u64>,
    /// Whose answers came, in order.
    answered_by: Vec<usize>,
}

impl World {
    /// Requests from an agent to an address, from now on. Returns the caller's number.
    ///
    /// # Panics
    /// It is no address.
    pub fn call(&mut self, from: usize, to: &str, interval: Duration) -> usize {
        self.caller(from, to, interval, false)
    }

    /// The same with data that is never answered, and counts as answered where it arrives.
    ///
    /// # Panics
    /// It is no address.
    pub fn tell(&mut self, from: usize, to: &str, interval: Duration) -> usize {
        self.caller(from, to, interval, true)
    }

    fn caller(&mut self, from: usize, to: &str, interval: Duration, is_one_way: bool) -> usize {
        self.callers.push(Caller {
            from,
            to: to.parse().unwrap_or_else(|_| panic!("{to} is no address")),
            interval,
            is_on: true,
            is_one_way,
            started_at: self.now,
            answered_at: self.now,
            good_since: BTreeMap::new(),
            withdrawn_since: BTreeMap::new(),
            goes_to: None,
            sent: 0,
            answered: 0,
            longest_gap: Duration::ZERO,
            outstanding: BTreeSet::new(),
            answered_by: Vec::new(),
        });
        let caller = self.callers.len() - 1;
        self.queue.push(self.now, Event::Call(caller));
        caller
    }

    /// No more requests, or some again.
    pub fn set_caller(&mut self, caller: usize, is_on: bool) {
        let was_on = std::mem::replace(&mut self.callers[caller].is_on, is_on);
        if is_on && !was_on {
            (self.callers[caller].started_at, self.callers[caller].answered_at) = (self.now, self.now);
            self.queue.push(self.now, Event::Call(caller));
        }
    }

    /// The longest time between two answers, up to now; counted anew from then on.
    pub fn outage(&mut self, caller: usize) -> Duration {
        let caller = &mut self.callers[caller];
        let present = self.now.since(caller.answered_at);
        std::mem::take(&mut caller.longest_gap).max(present)
    }

    /// Requests sent, and answered, so far.
    pub fn answers(&self, caller: usize) -> (u64, u64) {
        (self.callers[caller].sent, self.callers[caller].answered)
    }

    /// Whose answers came, each named once in a row.
    pub fn answered_by(&self, caller: usize) -> &[usize] {
        &self.callers[caller].answered_by
    }

    pub(crate) fn on_call(&mut self, at: usize) {
        let (now, caller) = (self.now, &mut self.callers[at]);
        if !caller.is_on {
            return;
        }
        self.queue.push(now + caller.interval, Event::Call(at));
        let (from, to) = (caller.from, caller.to);
        if !self.nodes[from].is_awake() {
            return;
        }
        caller.sent += 1;
        let id = FIRST_ID | (at as u64) << 32 | caller.sent;
        caller.outstanding.insert(id);
        let header = Header { id, from: members::of(from).address, to };
        self.nodes[from].tunnel.send(Packet::Request(header), now);
        self.effects(from);
    }

    /// Takes what nobody answers: whether it is that.
    pub(crate) fn on_told(&mut self, id: u64, by: usize) -> bool {
        let is_callers = id >= FIRST_ID;
        is_callers && self.callers[((id ^ FIRST_ID) >> 32) as usize].is_one_way && self.on_answer(id, by)
    }

    /// Whether it was a caller's.
    pub(crate) fn on_answer(&mut self, id: u64, by: usize) -> bool {
        if id < FIRST_ID {
            return false;
        }
        let at = ((id ^ FIRST_ID) >> 32) as usize;
        let (now, caller) = (self.now, &mut self.callers[at]);
        if caller.outstanding.remove(&id) {
            caller.answered += 1;
            caller.longest_gap = caller.longest_gap.max(now.since(caller.answered_at));
            caller.answered_at = now;
            if caller.answered_by.last() != Some(&by) {
                caller.answered_by.push(by);
            }
            self.check_answerer(at, by);
        }
        true
    }
}
