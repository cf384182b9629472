//! The connections that are under way: a bounded table, in which those of one kind push out only their own kind, the longest unused first.
//!
//! Kinds part what this system opened from what others did, and what was answered from what was not, so that no flood of one
//! makes room for itself among the others. An entry is found by one hash, or none where packets of one flow follow each other.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    broken::Via,
    header::Ends,
    progress::{Progress, Segment},
    recent::Way,
};

/// A flow seen from this system: `local` is its end here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    protocol: u8,
    local: IpAddr,
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
}

impl Flow {
    pub(super) fn outbound(ends: &Ends) -> Self {
        Self {
            protocol: ends.protocol,
            local: ends.source,
            remote: ends.destination,
            local_port: ends.source_port,
            remote_port: ends.destination_port,
        }
    }

    pub(super) fn inbound(ends: &Ends) -> Self {
        Self::outbound(&ends.reversed())
    }

    pub(super) fn is(&self, protocol: u8) -> bool {
        self.protocol == protocol
    }

    pub(super) fn remote(&self) -> IpAddr {
        self.remote
    }

    /// Here, and there.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        ((self.local, self.local_port).into(), (self.remote, self.remote_port).into())
    }

    /// As the other side would open it.
    pub(super) fn opened_by_remote(&self) -> Ends {
        Ends {
            protocol: self.protocol,
            source: self.remote,
            destination: self.local,
            source_port: self.remote_port,
            destination_port: self.local_port,
        }
    }
}

/// Who opened a flow, and how far it got. Each kind has its bound and its patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From here, not answered yet, or ended.
    Opening,
    /// From here, answered, without connections of its protocol's own.
    Datagrams,
    /// A TCP connection from here.
    Stream,
    /// Perhaps one from before the filter was: its other end sends, and this system has not yet.
    Picked,
    /// TCP from outside, not answered yet, or ended.
    TheirOpening,
    TheirStream,
    /// TCP from outside that was allowed and is not any more: what this system still sends opens no way.
    Revoked,
}

const KINDS: usize = 7;

impl Kind {
    fn limit(self) -> usize {
        match self {
            Self::Opening => 8192,
            Self::Datagrams | Self::Stream | Self::TheirStream | Self::Revoked => 16384,
            Self::TheirOpening => 4096,
            Self::Picked => 1024,
        }
    }

    /// Seconds without a packet after which the flow is over. RFC 5382 asks for 2 h 4 min of TCP, RFC 4787 for 5 min of UDP.
    fn patience_s(self) -> u32 {
        match self {
            Self::Opening | Self::Picked | Self::TheirOpening => 60,
            Self::Datagrams => 300,
            Self::Stream | Self::TheirStream | Self::Revoked => 7440,
        }
    }
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) kind: Kind,
    /// TCP's: which side has said that it is done, and whether one has broken it off.
    pub(super) ended_here: bool,
    pub(super) ended_there: bool,
    pub(super) is_reset: bool,
    /// By us: whoever goes on has missed it.
    pub(super) is_broken: bool,
    /// TCP's: what each side has sent, by its [`Way`].
    pub(super) sides: [Progress; 2],
    /// Whose tunnel it took when it began.
    pub(super) via: Via,
}

impl State {
    pub(super) fn new(kind: Kind, via: Via) -> Self {
        let sides = [Progress::default(); 2];
        Self { kind, ended_here: false, ended_there: false, is_reset: false, is_broken: false, sides, via }
    }
}

/// Where a flow is, as long as it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Handle {
    place: u32,
    number: u32,
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) flow: Flow,
    pub(super) state: State,
    /// Of all that were ever there.
    number: u32,
    /// Seconds of the filter's clock.
    used_s: u32,
    newer: u32,
    older: u32,
}

impl Entry {
    fn is_over(&self, now_s: u32) -> bool {
        // The end that missed its reset may be silent for as long as one that goes on.
        let kind = if self.state.is_broken { Kind::Stream } else { self.state.kind };
        now_s.saturating_sub(self.used_s) >= kind.patience_s()
    }
}

/// One kind's entries in the order of their last use.
#[derive(Debug, Clone, Copy)]
struct Order {
    newest: u32,
    oldest: u32,
    len: usize,
}

#[derive(Debug)]
pub(super) struct Flows {
    places: HashMap<Flow, u32>,
    entries: Vec<Entry>,
    /// Places in `entries` that are not in use.
    free: Vec<u32>,
    orders: [Order; KINDS],
    /// Where the last packet's flow is.
    last: u32,
    inserted: u32,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            orders: [Order { newest: NONE, oldest: NONE, len: 0 }; KINDS],
            last: NONE,
            inserted: 0,
        }
    }
}

impl Flows {
    /// Whether the flow is there, without using it.
    pub(super) fn holds(&self, flow: &Flow, now_s: u32) -> bool {
        let entry = self.places.get(flow).map(|place| &self.entries[*place as usize]);
        entry.is_some_and(|entry| !entry.is_over(now_s) && entry.state.kind != Kind::Revoked)
    }

    /// The flow's state, if it is not over. That it was asked for is a use.
    pub(super) fn find(&mut self, flow: &Flow, now_s: u32) -> Option<&mut State> {
        let place = match self.entries.get(self.last as usize) {
            Some(entry) if entry.flow == *flow => self.last,
            Some(_) | None => *self.places.get(flow)?,
        };
        let entry = &self.entries[place as usize];
        if entry.is_over(now_s) {
            self.remove(place);
            return None;
        }
        self.last = place;
        // An order by seconds will do.
        if entry.used_s < now_s {
            let kind = entry.state.kind;
            self.unlink(place);
            self.link(place, kind);
            self.entries[place as usize].used_s = now_s;
        }
        Some(&mut self.entries[place as usize].state)
    }

    /// Adds a flow that is not there; the longest unused of its kind goes where there are too many.
    pub(super) fn insert(&mut self, flow: Flow, state: State, now_s: u32) {
        self.make_room(state.kind);
        self.inserted = self.inserted.wrapping_add(1);
        let number = self.inserted;
        let entry = Entry { flow, state, number, used_s: now_s, newer: NONE, older: NONE };
        let place = match self.free.pop() {
            Some(place) => {
                self.entries[place as usize] = entry;
                place
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.places.insert(flow, place);
        self.link(place, state.kind);
        self.last = place;
    }

    /// Where the flow is that was found or inserted last.
    pub(super) fn last(&self) -> Handle {
        let number = self.entries.get(self.last as usize).map_or(0, |entry| entry.number);
        Handle { place: self.last, number }
    }

    /// Another segment of a flow that was found within this second.
    pub(super) fn advance(&mut self, handle: Handle, way: Way, segment: &Segment) {
        if let Some(entry) = self.entries.get_mut(handle.place as usize)
            && entry.number == handle.number
        {
            entry.state.sides[way as usize].advance(segment);
        }
    }

    /// The places of the table, also those that are not in use.
    pub(super) fn places(&self) -> usize {
        self.entries.len()
    }

    /// What is at a place, or was last.
    pub(super) fn entry(&self, place: usize) -> Option<&Entry> {
        self.entries.get(place)
    }

    /// Breaks off the connection at a place.
    pub(super) fn reset(&mut self, place: usize) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        (entry.state.is_reset, entry.state.is_broken) = (true, true);
        let over = entry.state.kind.over();
        self.turn(place as u32, over);
    }

    /// The flow that was found or inserted last becomes another kind.
    pub(super) fn become_kind(&mut self, kind: Kind) {
        if self.last != NONE {
            self.turn(self.last, kind);
        }
    }

    /// Forgets what is over.
    pub(super) fn forget_over(&mut self, now_s: u32) {
        let over = |place: &&u32| self.entries[**place as usize].is_over(now_s);
        let gone: Vec<u32> = self.places.values().filter(over).copied().collect();
        gone.into_iter().for_each(|place| self.remove(place));
        if self.places.is_empty() {
            // Numbers are never used twice.
            *self = Self { inserted: self.inserted, ..Self::default() };
        }
    }

    /// Flows turn into other kinds as `judge` says.
    pub(super) fn turn_all(&mut self, judge: impl Fn(&Flow, Kind) -> Kind) {
        let turned = |place: &u32| {
            let entry = &self.entries[*place as usize];
            let kind = judge(&entry.flow, entry.state.kind);
            (kind != entry.state.kind).then_some((*place, kind))
        };
        let turned: Vec<(u32, Kind)> = self.places.values().filter_map(turned).collect();
        turned.into_iter().for_each(|(place, kind)| self.turn(place, kind));
    }

    /// The longest unused of the new kind goes where there are too many.
    fn turn(&mut self, place: u32, kind: Kind) {
        if self.entries[place as usize].state.kind == kind {
            return;
        }
        self.make_room(kind);
        self.unlink(place);
        self.entries[place as usize].state.kind = kind;
        self.link(place, kind);
    }

    fn make_room(&mut self, kind: Kind) {
        let order = self.orders[kind as usize];
        if order.len >= kind.limit() {
            self.remove(order.oldest);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        let entry = &mut self.entries[place as usize];
        // Nothing to be broken off.
        entry.state.is_reset = true;
        self.places.remove(&entry.flow);
        self.free.push(place);
        if self.last == place {
            self.last = NONE;
        }
    }

    fn unlink(&mut self, place: u32) {
        let Entry { newer, older, state, .. } = self.entries[place as usize];
        let order = &mut self.orders[state.kind as usize];
        order.len -= 1;
        match newer {
            NONE => order.newest = older,
            _ => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => order.oldest = newer,
            _ => self.entries[older as usize].newer = newer,
        }
    }

    fn link(&mut self, place: u32, kind: Kind) {
        let order = &mut self.orders[kind as usize];
        let older = order.newest;
        order.newest = place;
        order.len += 1;
        match older {
            NONE => order.oldest = place,
            _ => self.entries[older as usize].newer = place,
        }
        let entry = &mut self.entries[place as usize];
        (entry.newer, entry.older) = (NONE, older);
    }
}

#[cfg(any(test, fuzzing))]
impl Flows {
    /// Both directions of every order name the entries of its kind, each once.
    pub(super) fn assert_sound(&self) {
        let mut seen = 0;
        for (kind, order) in self.orders.iter().enumerate() {
            let (mut place, mut newer, mut len) = (order.newest, NONE, 0);
            while place != NONE {
                let entry = &self.entries[place as usize];
                assert_eq!((entry.state.kind as usize, entry.newer), (kind, newer));
                assert_eq!(self.places.get(&entry.flow), Some(&place));
                (newer, place, len) = (place, entry.older, len + 1);
            }
            assert_eq!((order.oldest, order.len), (newer, len));
            seen += len;
        }
        assert_eq!(seen, self.places.len());
        assert_eq!(seen + self.free.len(), self.entries.len());
    }
}
