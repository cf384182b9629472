//! The stateful packet filter: what may leave a tunnel into this system. What this system sends is never refused, and opens the way for its answers.
//!
//! A packet from a peer passes if it belongs to a connection that this system opened, if a rule lets its sender open what it opens,
//! or if it is an ICMP error about either. Everything else is dropped. What rules allow needs no entry in the table, but for
//! TCP, whose connections are known one by one; so no peer can fill the table with what it may send. A TCP connection that nobody
//! saw begin counts as opened by who may open it.
//!
//! - `header`: what is read of a packet
//! - `fragments`: packets of which the first part has passed
//! - `rules`: who may open what
//! - `flows`: the connections under way
//! - `recent`: what passed a moment ago
//! - `progress`: how far a TCP connection has come
//! - `broken`: those that cannot go on

mod broken;
mod flows;
mod fragments;
mod header;
mod progress;
mod recent;
mod rules;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

pub use broken::Via;
pub(crate) use broken::{Broken, Late, Looked};
use flows::{Flow, Flows, Kind, State};
use fragments::Fragments;
use header::{ACK, Ends, FIN, RST, SYN, View};
use progress::Segment;
use recent::{Recent, Sight, Way};
use rules::Rules;
pub use rules::{Protocol, Rule, Service};

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
    fragments: Fragments,
    recent: Recent,
    late: Option<Late>,
    started_at: Instant,
    swept_s: u32,
}

impl Filter {
    /// Without rules nothing may be opened from outside.
    pub fn new(rules: Vec<Rule>, now: Instant) -> Self {
        let (rules, flows, fragments) = (Rules::new(rules), Flows::default(), Fragments::default());
        let recent = Recent::default();
        Self { rules, flows, fragments, recent, late: None, started_at: now, swept_s: 0 }
    }

    /// Other rules. A connection from outside that these would not allow is over.
    pub fn replace_rules(&mut self, rules: Vec<Rule>) {
        self.rules = Rules::new(rules);
        self.recent = Recent::default();
        let rules = &self.rules;
        self.flows.turn_all(|flow, kind| {
            let may_be = || rules.permit(&flow.opened_by_remote());
            match kind {
                Kind::TheirOpening | Kind::TheirStream if !may_be() => Kind::Revoked,
                Kind::Revoked if may_be() => Kind::TheirOpening,
                Kind::Opening | Kind::Datagrams | Kind::Stream | Kind::Picked => kind,
                Kind::TheirOpening | Kind::TheirStream | Kind::Revoked => kind,
            }
        });
    }

    /// A packet of this system's is on its way out, by this peer's tunnel.
    pub fn note_outbound(&mut self, packet: &[u8], via: Via, now: Instant) {
        let now_s = self.tick(now);
        let sight = Sight::of(packet, Way::Out);
        if self.passed_lately(sight.as_ref(), now_s) {
            return;
        }
        match header::read(packet).map(|packet| packet.view) {
            Some(View::Tcp(ends, segment)) => self.note_tcp(&ends, &segment, via, now_s),
            Some(View::EchoRequest(ends) | View::Other(ends)) => {
                let flow = Flow::outbound(&ends);
                // What may come anyway needs no entry.
                if self.flows.find(&flow, now_s).is_none() && !self.rules.permit(&flow.opened_by_remote()) {
                    self.flows.insert(flow, State::new(Kind::Opening, via), now_s);
                }
            }
            Some(View::EchoReply(_) | View::OtherIcmp(_) | View::IcmpError { .. } | View::LaterFragment)
            | None => {}
        }
        if let Some(sight) = sight {
            self.recent.note(&sight, self.flows.last(), now_s);
        }
    }

    /// Whether the short way does: a plain packet of what passed within this second.
    fn passed_lately(&mut self, sight: Option<&Sight>, now_s: u32) -> bool {
        let Some((sight, handle)) = sight.and_then(|sight| Some((sight, self.recent.holds(sight, now_s)?)))
        else {
            return false;
        };
        if let Some(segment) = &sight.segment {
            self.flows.advance(handle, sight.way, segment);
        }
        true
    }

    fn note_tcp(&mut self, ends: &Ends, segment: &Segment, via: Via, now_s: u32) {
        let flags = segment.flags;
        let flow = Flow::outbound(ends);
        let known = self.flows.find(&flow, now_s).map(|state| state.kind);
        let opens = flags & (SYN | ACK) == SYN;
        match known {
            None => {
                let is_theirs = !opens && self.rules.permit(&flow.opened_by_remote());
                let kind = match (is_theirs, opens) {
                    (true, _) => Kind::TheirOpening,
                    (false, true) => Kind::Opening,
                    // There before the filter was.
                    (false, false) => Kind::Stream,
                };
                self.flows.insert(flow, State::new(kind, via), now_s);
            }
            // The same ports again.
            Some(_) if opens => {
                self.flows.become_kind(Kind::Opening);
                self.begin_anew(&flow, via, now_s);
            }
            Some(Kind::Picked) if flags & RST == 0 => {
                self.flows.become_kind(Kind::Stream);
                self.flows.find(&flow, now_s).into_iter().for_each(|state| state.via = via);
            }
            Some(_) => {}
        }
        self.advance_tcp(&flow, segment, now_s, Way::Out);
    }

    fn begin_anew(&mut self, flow: &Flow, via: Via, now_s: u32) {
        if let Some(state) = self.flows.find(flow, now_s) {
            *state = State::new(state.kind, via);
        }
    }

    /// Whether a packet from a peer may go on to this system.
    ///
    /// # Errors
    /// It may not.
    pub fn judge_inbound(&mut self, packet: &[u8], via: Via, now: Instant) -> Result<(), Refusal> {
        let now_s = self.tick(now);
        let sight = Sight::of(packet, Way::In);
        if self.passed_lately(sight.as_ref(), now_s) {
            return Ok(());
        }
        let header::Packet { view, fragment } = header::read(packet).ok_or(Refusal::Malformed)?;
        let passes = match view {
            View::Tcp(ends, segment) => self.judge_tcp(&ends, &segment, via, now_s),
            View::EchoRequest(ends) | View::OtherIcmp(ends) => self.rules.permit(&ends),
            View::EchoReply(ends) => {
                self.flows.find(&Flow::inbound(&ends), now_s).is_some() || self.rules.permit(&ends)
            }
            View::Other(ends) => self.judge_other(&ends, now_s),
            View::LaterFragment => fragment.is_some_and(|later| self.fragments.follow(&later, now_s)),
            View::IcmpError { from, to, about } => {
                about.is_some_and(|sent| sent.source == to && self.is_under_way(&sent, from, now_s))
            }
        };
        match (passes, fragment) {
            (false, _) => return Err(Refusal::Denied),
            (true, Some(first)) if first.begin == 0 => self.fragments.admit(&first, now_s),
            (true, _) => {}
        }
        if let Some(sight) = sight {
            self.recent.note(&sight, self.flows.last(), now_s);
        }
        Ok(())
    }

    fn judge_other(&mut self, ends: &Ends, now_s: u32) -> bool {
        match self.flows.find(&Flow::inbound(ends), now_s).map(|state| state.kind) {
            Some(Kind::Opening) => {
                self.flows.become_kind(Kind::Datagrams);
                true
            }
            Some(_) => true,
            None => self.rules.permit(ends),
        }
    }

    fn judge_tcp(&mut self, ends: &Ends, segment: &Segment, via: Via, now_s: u32) -> bool {
        let flags = segment.flags;
        let flow = Flow::inbound(ends);
        let (opens, goes_on) = (flags & (SYN | ACK) == SYN, flags & (SYN | RST | ACK) == ACK);
        let known = self.flows.find(&flow, now_s).map(|state| state.kind);
        match known {
            Some(Kind::Revoked) => return false,
            // Also where a connection of ours has these ports: its other end opens nothing by them.
            Some(Kind::Opening | Kind::Datagrams | Kind::Stream | Kind::Picked) if opens => {
                return self.rules.permit(ends);
            }
            Some(Kind::TheirOpening | Kind::TheirStream) if opens => self.begin_anew(&flow, via, now_s),
            Some(_) => {}
            None if self.rules.permit(ends) => {
                self.flows.insert(flow, State::new(Kind::TheirOpening, via), now_s);
            }
            None if goes_on && now_s < PICKUP.as_secs() as u32 => {
                self.flows.insert(flow, State::new(Kind::Picked, via), now_s);
            }
            None => return false,
        }
        self.advance_tcp(&flow, segment, now_s, Way::In);
        self.note_late(&flow, segment, now_s);
        true
    }

    /// A connection is one when the side that was called has been heard; it is none any more after a reset or both ends.
    fn advance_tcp(&mut self, flow: &Flow, segment: &Segment, now_s: u32, way: Way) {
        let (flags, is_ours) = (segment.flags, way == Way::Out);
        let Some(state) = self.flows.find(flow, now_s) else { return };
        state.sides[way as usize].advance(segment);
        let ended = if is_ours { &mut state.ended_here } else { &mut state.ended_there };
        *ended |= flags & FIN != 0;
        state.is_reset |= flags & RST != 0;
        let is_over = state.is_reset || (state.ended_here && state.ended_there);
        let kind = match (state.kind, is_over) {
            (kind, true) => kind.over(),
            (Kind::Opening, false) if !is_ours && flags & ACK != 0 => Kind::Stream,
            (Kind::TheirOpening, false) if is_ours && flags & ACK != 0 => Kind::TheirStream,
            (kind, _) => kind,
        };
        self.flows.become_kind(kind);
    }

    /// Whether somebody may tell an error of a packet that this system sent: anybody on its way, if it is of a flow that is known; else who it was sent to, if its
    /// answer would pass.
    fn is_under_way(&self, sent: &Ends, teller: IpAddr, now_s: u32) -> bool {
        let flow = Flow::outbound(sent);
        let passes = || teller == sent.destination && self.rules.permit(&flow.opened_by_remote());
        self.flows.holds(&flow, now_s) || passes()
    }

    /// As if nothing had passed a moment ago.
    #[cfg(test)]
    fn forget_recent(&mut self) {
        self.recent = Recent::default();
    }

    /// That the table holds together.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_sound(&self) {
        self.flows.assert_sound();
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
            self.flows.forget_over(now_s);
            self.fragments.forget_old(now_s);
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
