//! TCP connections that cannot go on, since their other end is another node now: found in the table, piece by piece, and over.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use super::{
    Filter,
    flows::{Entry, Flow, Kind},
    header::{ACK, RST, SYN, TCP},
    progress::Segment,
    recent::Way,
};

/// Whose tunnel packets take, as the caller numbers its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via(pub u32);

/// A connection that is over, and what its ends may expect next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) expected_here: [Option<u32>; 2],
    pub(crate) expected_there: [Option<u32>; 2],
}

/// The end of a broken connection that goes on, and what it expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) expected: u32,
}

/// Places of the table that were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) until: usize,
    pub(crate) is_all: bool,
}

impl Filter {
    /// Who the last packet showed to have missed that its connection was broken off: of each connection once a second at most.
    pub(crate) fn take_late(&mut self) -> Option<Late> {
        self.late.take()
    }

    pub(super) fn note_late(&mut self, flow: &Flow, segment: &Segment, now_s: u32) {
        let goes_on = segment.flags & (SYN | RST | ACK) == ACK;
        if goes_on && self.flows.find(flow, now_s).is_some_and(|state| state.is_broken) {
            let (local, remote) = flow.ends();
            self.late = Some(Late { local, remote, expected: segment.acknowledged });
        }
    }

    /// Ends connections that `cannot_go_on` among the given places of the table, told by whose tunnel they began by and where they go; stops after `most`.
    pub(crate) fn break_connections(
        &mut self,
        places: Range<usize>,
        most: usize,
        cannot_go_on: impl Fn(Via, IpAddr) -> bool,
        mut end: impl FnMut(Broken),
    ) -> Looked {
        let last = places.end.min(self.flows.places());
        let mut broken = 0;
        for place in places.start..last {
            if broken == most {
                return Looked { until: place, is_all: false };
            }
            let found = self.flows.entry(place).filter(|entry| entry.is_connection());
            let found = found.filter(|entry| cannot_go_on(entry.state.via, entry.flow.remote()));
            if let Some(found) = found.map(Entry::broken) {
                broken += 1;
                self.flows.reset(place);
                end(found);
            }
        }
        Looked { until: last, is_all: last >= self.flows.places() }
    }
}

impl Entry {
    /// Of TCP, answered by either side, and not over. A SYN that nobody answered is repeated, and may find the one who serves now.
    fn is_connection(&self) -> bool {
        let state = &self.state;
        let is_over = state.is_reset || (state.ended_here && state.ended_there);
        self.flow.is(TCP) && !is_over && state.sides.iter().any(|side| side.has_answered())
    }

    fn broken(&self) -> Broken {
        let (local, remote) = self.flow.ends();
        let (here, there) = (&self.state.sides[Way::Out as usize], &self.state.sides[Way::In as usize]);
        Broken { local, remote, expected_here: here.expected(there), expected_there: there.expected(here) }
    }
}

impl Kind {
    /// Of a connection that was broken off.
    pub(super) fn over(self) -> Self {
        match self {
            Self::Stream | Self::Opening => Self::Opening,
            Self::TheirStream | Self::TheirOpening => Self::TheirOpening,
            Self::Datagrams | Self::Picked | Self::Revoked => self,
        }
    }
}
