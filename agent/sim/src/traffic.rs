//! Traffic between agents: requests at an interval, each of which wants its reply.

use crate::{
    event::Event,
    members,
    tunnel::{Header, Packet},
    world::World,
};
use agent_core::BootTime;
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) interval: Duration,
    pub(crate) is_on: bool,
    next: u64,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// The last answered request, and how long it took.
    pub(crate) last_round_trip: Option<Duration>,
    /// When each was sent, and whether nothing excuses its loss.
    pub(crate) outstanding: BTreeMap<u64, (BootTime, bool)>,
    /// Something other than a server stands or stood between the two; see `check`.
    pub(crate) disturbed_at: BootTime,
    pub(crate) needs_server: bool,
    pub(crate) is_settled: bool,
}

impl World {
    /// Requests from one agent to another, from now on. Returns the flow's number.
    pub fn flow(&mut self, from: usize, to: usize, interval: Duration) -> usize {
        let flow = Flow {
            from,
            to,
            interval,
            is_on: true,
            next: 0,
            sent: 0,
            answered: 0,
            last_round_trip: None,
            outstanding: BTreeMap::new(),
            disturbed_at: self.now,
            needs_server: true,
            is_settled: false,
        };
        self.flows.push(flow);
        self.queue.push(self.now, Event::Flow(self.flows.len() - 1));
        self.flows.len() - 1
    }

    /// Stops or starts the requests of a flow.
    pub fn set_flow(&mut self, flow: usize, is_on: bool) {
        let was_on = std::mem::replace(&mut self.flows[flow].is_on, is_on);
        if is_on && !was_on {
            self.queue.push(self.now, Event::Flow(flow));
        }
    }

    /// Requests sent and answered so far.
    pub fn traffic(&self, flow: usize) -> (u64, u64) {
        (self.flows[flow].sent, self.flows[flow].answered)
    }

    /// How long the last answered request took.
    pub fn last_round_trip(&self, flow: usize) -> Option<Duration> {
        self.flows[flow].last_round_trip
    }

    pub(crate) fn on_flow(&mut self, at: usize) {
        let (now, flow) = (self.now, &mut self.flows[at]);
        if !flow.is_on {
            return;
        }
        self.queue.push(now + flow.interval, Event::Flow(at));
        let (from, to) = (flow.from, members::of(flow.to).address);
        if !self.nodes[from].is_awake() {
            return;
        }
        let flow = &mut self.flows[at];
        flow.next += 1;
        flow.sent += 1;
        let id = (at as u64) << 32 | flow.next;
        flow.outstanding.insert(id, (now, flow.is_settled));
        let header = Header { id, from: members::of(from).address, to };
        self.nodes[from].tunnel.send(Packet::Request(header), now);
        self.effects(from);
    }

    pub(crate) fn on_delivered(&mut self, at: usize, from: usize, packet: Packet) {
        match packet {
            Packet::Request(Header { id, from: source, to }) => {
                self.check_let_in(at, from);
                let now = self.now;
                if !self.has_address(at, to) {
                    self.fail(&format!("a packet to {to} went to agent {at}, which does not have it"));
                }
                if !self.serves_address(at, to) || self.on_told(id, at) {
                    return;
                }
                let reply = Header { id, from: to, to: source };
                self.nodes[at].tunnel.send(Packet::Reply(reply), now);
                self.effects(at);
            }
            Packet::Reply(Header { id, .. }) if self.on_answer(id, from) => {}
            Packet::Reply(Header { id, .. }) => {
                let flow = &mut self.flows[(id >> 32) as usize];
                flow.answered += 1;
                if let Some((sent_at, _)) = flow.outstanding.remove(&id) {
                    flow.last_round_trip = Some(self.now.since(sent_at));
                }
            }
            Packet::Keepalive | Packet::Message(_) => {}
        }
    }
}
