//! The stateful packet filter: what may leave a tunnel into this system. What this system sends is never refused, and opens the way for its answers.
//!
//! A packet from a peer passes if it belongs to a connection that this system opened, if a rule lets its sender open what it opens,
//! or if it is an ICMP error about either. Everything else is dropped. What rules allow needs no entry in the table, but for
//! TCP, whose connections are known one by one; so no peer can fill the table with what it may send.
//!
//! - `header`: what is read of a packet
//! - `rules`: who may open what
//! - `flows`: the connections under way

mod flows;
mod header;
mod rules;

use std::time::{Duration, Instant};

use flows::{Flow, Flows, Kind, State};
use header::{ACK, Ends, FIN, RST, SYN, View};
use rules::Rules;
pub use rules::{Protocol, Rule};

/// For so long after its start the filter takes TCP connections for this system's own that were there before it:
/// a restart of the agent ends nobody's download.
const PICKUP: Duration = Duration::from_secs(300);
/// How often what is over is forgotten.
const SWEEP_S: u32 = 60;

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No rule allows it, and it answers nothing.
    Denied,
    /// Cut short, or built to mislead filters.
    Malformed,
}

/// The filter of one interface.
#[derive(Debug)]
pub struct Filter {
    rules: Rules,
    flows: Flows,
    started_at: Instant,
    swept_s: u32,
}

impl Filter {
    /// Without rules nothing may be opened from outside.
    pub fn new(rules: Vec<Rule>, now: Instant) -> Self {
        Self { rules: Rules::new(rules), flows: Flows::default(), started_at: now, swept_s: 0 }
    }

    /// Other rules. A connection from outside that these would not allow is over.
    pub fn replace_rules(&mut self, rules: Vec<Rule>, now: Instant) {
        self.rules = Rules::new(rules);
        let rules = &self.rules;
        self.flows.retain(self.started_at.elapsed_s(now), |flow, kind| {
            !kind.is_theirs() || rules.permit(&flow.opened_by_remote())
        });
    }

    /// A packet of this system's is on its way out.
    pub fn note_outbound(&mut self, packet: &[u8], now: Instant) {
        let now_s = self.tick(now);
        match header::view(packet) {
            Some(View::Tcp(ends, flags)) => self.note_tcp(&ends, flags, now_s),
            Some(View::EchoRequest(ends) | View::Other(ends)) => {
                let flow = Flow::outbound(&ends);
                // What may come anyway needs no entry.
                if self.flows.find(&flow, now_s).is_none() && !self.rules.permit(&flow.opened_by_remote()) {
                    self.flows.insert(flow, State::new(Kind::Opening), now_s);
                }
            }
            Some(View::EchoReply(_) | View::IcmpError(_) | View::LaterFragment) | None => {}
        }
    }

    fn note_tcp(&mut self, ends: &Ends, flags: u8, now_s: u32) {
        let flow = Flow::outbound(ends);
        let is_new = self.flows.find(&flow, now_s).is_none();
        if is_new {
            let is_theirs = self.rules.permit(&flow.opened_by_remote());
            let kind = match (is_theirs, flags & SYN != 0) {
                (true, _) => Kind::TheirOpening,
                (false, true) => Kind::Opening,
                // There before the filter was.
                (false, false) => Kind::Stream,
            };
            self.flows.insert(flow, State::new(kind), now_s);
        }
        if let Some(state) = self.flows.find(&flow, now_s) {
            if flags & SYN != 0 {
                // The same ports again, after the connection before has ended.
                *state = State::new(state.kind);
            }
            state.ended_here |= flags & FIN != 0;
            self.advance_tcp(&flow, flags, now_s, true);
        }
    }

    /// Whether a packet from a peer may go on to this system.
    ///
    /// # Errors
    /// It may not.
    pub fn judge_inbound(&mut self, packet: &[u8], now: Instant) -> Result<(), Refusal> {
        let now_s = self.tick(now);
        let passes = match header::view(packet).ok_or(Refusal::Malformed)? {
            View::Tcp(ends, flags) => self.judge_tcp(&ends, flags, now_s),
            View::EchoRequest(ends) => self.rules.permit(&ends),
            View::EchoReply(ends) => {
                self.flows.find(&Flow::inbound(&ends), now_s).is_some() || self.rules.permit(&ends)
            }
            View::Other(ends) => self.judge_other(&ends, now_s),
            // Without its first, which is judged, nothing comes of it.
            View::LaterFragment => true,
            View::IcmpError(about) => about.is_some_and(|ends| self.is_under_way(&ends, now_s)),
        };
        if passes { Ok(()) } else { Err(Refusal::Denied) }
    }

    fn judge_other(&mut self, ends: &Ends, now_s: u32) -> bool {
        match self.flows.find(&Flow::inbound(ends), now_s).map(|state| state.kind) {
            Some(Kind::Opening) => {
                self.flows.become_kind(Kind::Datagrams);
                true
            }
            Some(Kind::Datagrams | Kind::Stream | Kind::TheirOpening | Kind::TheirStream) => true,
            None => self.rules.permit(ends),
        }
    }

    fn judge_tcp(&mut self, ends: &Ends, flags: u8, now_s: u32) -> bool {
        let flow = Flow::inbound(ends);
        let opens = flags & (SYN | ACK) == SYN;
        let known = self.flows.find(&flow, now_s).map(|state| state.kind);
        match known {
            // Also where a connection of ours has these ports: its other end opens nothing by them.
            Some(kind) if opens && !kind.is_theirs() => return self.rules.permit(ends),
            Some(_) => {}
            None if self.rules.permit(ends) => {
                self.flows.insert(flow, State::new(Kind::TheirOpening), now_s);
            }
            None if flags & (SYN | ACK) == ACK && now_s < PICKUP.as_secs() as u32 => {
                self.flows.insert(flow, State::new(Kind::Stream), now_s);
            }
            None => return false,
        }
        if let Some(state) = self.flows.find(&flow, now_s) {
            state.ended_there |= flags & FIN != 0;
            self.advance_tcp(&flow, flags, now_s, false);
        }
        true
    }

    /// A connection is one when the side that was called has been heard; it is none any more after a reset or both ends.
    fn advance_tcp(&mut self, flow: &Flow, flags: u8, now_s: u32, is_ours: bool) {
        let Some(state) = self.flows.find(flow, now_s) else { return };
        let is_over = flags & RST != 0 || (state.ended_here && state.ended_there);
        let kind = match (state.kind, is_over) {
            (Kind::Stream | Kind::Opening, true) => Kind::Opening,
            (Kind::TheirStream | Kind::TheirOpening, true) => Kind::TheirOpening,
            (Kind::Opening, false) if !is_ours && flags & ACK != 0 => Kind::Stream,
            (Kind::TheirOpening, false) if is_ours && flags & ACK != 0 => Kind::TheirStream,
            (kind, false) => kind,
            (Kind::Datagrams, true) => Kind::Datagrams,
        };
        self.flows.become_kind(kind);
    }

    /// Of a packet that this system sent.
    fn is_under_way(&mut self, sent: &Ends, now_s: u32) -> bool {
        let flow = Flow::outbound(sent);
        self.flows.find(&flow, now_s).is_some() || self.rules.permit(&flow.opened_by_remote())
    }

    /// How many connections are known.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Seconds since the start; forgets what is over, now and then.
    fn tick(&mut self, now: Instant) -> u32 {
        let now_s = self.started_at.elapsed_s(now);
        if now_s >= self.swept_s + SWEEP_S {
            self.swept_s = now_s;
            self.flows.retain(now_s, |_, _| true);
        }
        now_s
    }
}

trait Elapsed {
    fn elapsed_s(&self, now: Instant) -> u32;
}

impl Elapsed for Instant {
    fn elapsed_s(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(*self).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
