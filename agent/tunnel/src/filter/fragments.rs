//! Fragmented packets whose first fragment passed: the others follow it, and none reaches back into it (RFC 3128).
//!
//! Bounded and forgetful: a packet whose first was forgotten meanwhile is lost and sent again by whoever needs it.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

const LIMIT: usize = 1024;
/// As long as systems wait for the rest of a packet (RFC 8200: 60 s; most give up earlier).
const PATIENCE_S: u32 = 30;

/// What the fragments of one packet have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Whole {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) id: u32,
    /// IPv4's alone: IPv6's later fragments may say anything.
    pub(super) protocol: Option<u8>,
}

/// A part of a packet, in bytes from the beginning of what was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) of: Whole,
    pub(super) begin: u32,
    pub(super) end: u32,
}

#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Where the first ends, and when it came.
    firsts: HashMap<Whole, (u32, u32)>,
    order: VecDeque<Whole>,
}

impl Fragments {
    /// A first fragment has passed.
    pub(super) fn admit(&mut self, first: &Fragment, now_s: u32) {
        if self.firsts.insert(first.of, (first.end, now_s)).is_some() {
            return;
        }
        self.order.push_back(first.of);
        if self.order.len() > LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.firsts.remove(&oldest);
        }
    }

    /// Whether another may follow its first.
    pub(super) fn follow(&self, later: &Fragment, now_s: u32) -> bool {
        let first = self.firsts.get(&later.of);
        first.is_some_and(|(end, at_s)| later.begin >= *end && now_s.saturating_sub(*at_s) < PATIENCE_S)
    }

    pub(super) fn forget_old(&mut self, now_s: u32) {
        let firsts = &mut self.firsts;
        while let Some(oldest) = self.order.front()
            && firsts.get(oldest).is_none_or(|(_, at_s)| now_s.saturating_sub(*at_s) >= PATIENCE_S)
        {
            firsts.remove(oldest);
            self.order.pop_front();
        }
    }
}
