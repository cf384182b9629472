//! Which packets of a batch the kernel takes as one (GRO): the following segments of one TCP connection, or datagrams of
//! one UDP flow, that would come out of the kernel's split again as they are, byte for byte. (The identification of a
//! packet that may not be fragmented means nothing, RFC 6864, and may differ.)
//!
//! Nothing overtakes within a flow: what cannot join ends what it follows. Everything that is not plainly TCP or UDP
//! (fragments, options, extension headers, other protocols), and whatever has a wrong checksum or none, goes as it is.

use tun_rs::checksum;

use super::{
    split::{TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, put, transport_sum, word},
    vnet::{self, Header, NEEDS_CHECKSUM, TCP_V4, TCP_V6, UDP_L4},
};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// IP and TCP with all their options.
const MAX_HEADERS: usize = V6_HEADER + 60;
/// The length fields of a joined packet.
const MAX_JOINED: usize = 65_535;
/// As few as any kernel takes of UDP.
pub(super) const MAX_PARTS: usize = 64;
/// How many groups are looked through for a packet's flow.
const LOOK_BACK: usize = 32;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u16 = 0x4000;
const NONE: u16 = u16::MAX;

/// What can be joined at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
}

/// Whose a packet is. Hashes: what they call alike is compared.
#[derive(Debug, Clone, Copy)]
struct Flow {
    addresses: u64,
    /// With protocol and ports; `None` if these cannot be told.
    whole: Option<u64>,
}

impl Flow {
    fn may_be(self, other: Self) -> bool {
        self.addresses == other.addresses
            && self.whole.zip(other.whole).is_none_or(|(own, other)| own == other)
    }
}

/// A packet that may be a part, by its headers.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: Kind,
    is_v6: bool,
    transport: usize,
    payload: usize,
}

impl Part {
    /// What is not plainly TCP or UDP is no part; what has more in it than data is none, but its flow is known.
    fn of(packet: &[u8]) -> (Option<Self>, Flow) {
        let unknown = Flow { addresses: addresses(packet), whole: None };
        let is_v6 = match packet.first() {
            Some(0x45) => false,
            Some(first) if first >> 4 == 6 => true,
            Some(_) | None => return (None, unknown),
        };
        let transport = if is_v6 { V6_HEADER } else { V4_HEADER };
        if packet.len() < transport + 8 || !is_plain(packet, is_v6) {
            return (None, unknown);
        }
        let (kind, header) = match packet[if is_v6 { 6 } else { 9 }] {
            TCP => (Kind::Tcp, tcp_header(&packet[transport..])),
            UDP => (Kind::Udp, udp_header(&packet[transport..])),
            _ => return (None, unknown),
        };
        let ports = u64::from(word(packet, transport)) << 16 | u64::from(word(packet, transport + 2));
        let flow = Flow { whole: Some(mix(ports, kind as u64)), ..unknown };
        let part = header
            .map(|header| Self { kind, is_v6, transport, payload: transport + header })
            .filter(|part| part.payload < packet.len());
        (part, flow)
    }

    fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp => TCP,
            Kind::Udp => UDP,
        }
    }

    /// Joined, a wrong checksum would become a right one.
    fn is_intact(&self, packet: &[u8]) -> bool {
        let is_header_intact = self.is_v6 || checksum(&packet[..V4_HEADER], 0) == 0xffff;
        is_header_intact && transport_sum(packet, self.transport, self.protocol()) == 0xffff
    }

    fn is_pushed(&self, packet: &[u8]) -> bool {
        self.kind == Kind::Tcp && packet[self.transport + 13] & PSH != 0
    }
}

/// Not a fragment, and as long as it says.
fn is_plain(packet: &[u8], is_v6: bool) -> bool {
    if is_v6 {
        usize::from(word(packet, 4)) == packet.len() - V6_HEADER
    } else {
        usize::from(word(packet, 2)) == packet.len() && word(packet, 6) & !DONT_FRAGMENT == 0
    }
}

/// The header's length, where nothing but data and acknowledgement is in it.
fn tcp_header(segment: &[u8]) -> Option<usize> {
    let header = usize::from(*segment.get(12)? >> 4) * 4;
    let is_data = header >= 20 && segment.len() > header && segment[13] & !PSH == ACK;
    // The other form of the sum 0, which nobody makes.
    (is_data && word(segment, TCP_CHECKSUM) != 0xffff).then_some(header)
}

/// 0 says that there is no checksum.
fn udp_header(datagram: &[u8]) -> Option<usize> {
    let is_whole = usize::from(word(datagram, 4)) == datagram.len();
    (is_whole && word(datagram, UDP_CHECKSUM) != 0).then_some(8)
}

/// Of what is no IP packet, 0.
fn addresses(packet: &[u8]) -> u64 {
    let range = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(12..20),
        Some(6) => packet.get(8..40),
        Some(_) | None => None,
    };
    let (words, _) = range.unwrap_or_default().as_chunks::<8>();
    words.iter().fold(0, |hash, word| mix(hash, u64::from_ne_bytes(*word)))
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// Packets that are written as one, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    first: u16,
    last: u16,
    pub(super) count: u16,
    /// Of the packet that they make.
    len: usize,
    flow: Flow,
    /// `None` if the first cannot be joined with others, or no more can join.
    open: Option<Part>,
    is_checked: bool,
    part: Option<Part>,
}

impl Group {
    pub(super) fn first(&self) -> usize {
        self.first.into()
    }

    pub(super) fn last(&self) -> usize {
        self.last.into()
    }

    /// `None` if it is a packet that could never be joined.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.part.map(|part| part.kind)
    }
}

/// The groups of a batch. Packets are named by their place in it.
pub(super) struct Joiner {
    groups: Vec<Group>,
    /// The next packet of the same group, for each.
    next: Vec<u16>,
}

impl Joiner {
    pub(super) fn new(packets: usize) -> Self {
        Self { groups: Vec::with_capacity(packets), next: vec![NONE; packets] }
    }

    /// Forms groups of packets in the order of their first ones. `joins` tells what the kernel takes joined now.
    pub(super) fn plan<'a>(
        &mut self,
        count: usize,
        packet: impl Fn(usize) -> &'a [u8],
        joins: impl Fn(Kind) -> bool,
    ) {
        self.groups.clear();
        for index in 0..count {
            self.next[index] = NONE;
            let bytes = packet(index);
            let (part, flow) = Part::of(bytes);
            if !self.join(part, index, flow, &packet) {
                self.begin(part, index, flow, bytes);
                if let Some(group) = self.groups.last_mut()
                    && group.kind().is_some_and(|kind| !joins(kind))
                {
                    group.open = None;
                }
            }
        }
    }

    fn begin(&mut self, part: Option<Part>, index: usize, flow: Flow, packet: &[u8]) {
        let open = part.filter(|part| !part.is_pushed(packet));
        let (index, len) = (index as u16, packet.len());
        self.groups.push(Group {
            first: index,
            last: index,
            count: 1,
            len,
            flow,
            open,
            is_checked: false,
            part,
        });
    }

    /// Whether the packet has joined the newest group of its flow. If not, nothing joins that any more.
    fn join<'a>(
        &mut self,
        part: Option<Part>,
        index: usize,
        flow: Flow,
        packet: &impl Fn(usize) -> &'a [u8],
    ) -> bool {
        let from = self.groups.len().saturating_sub(LOOK_BACK);
        let mut groups = self.groups[from..].iter_mut().rev().filter(|group| group.flow.may_be(flow));
        let Some(part) = part else {
            groups.for_each(|group| group.open = None);
            return false;
        };
        let Some(group) = groups.next() else { return false };
        let (head, bytes) = (packet(usize::from(group.first)), packet(index));
        let Some(own) = group.open.take() else { return false };
        let fits = follows(group, own, head, part, bytes);
        if !fits || !(group.is_checked || own.is_intact(head)) || !part.is_intact(bytes) {
            return false;
        }
        let size = head.len() - own.payload;
        let more = bytes.len() - part.payload;
        self.next[usize::from(group.last)] = index as u16;
        (group.last, group.count, group.is_checked) = (index as u16, group.count + 1, true);
        group.len += more;
        let takes_more = more == size && !part.is_pushed(bytes) && usize::from(group.count) < MAX_PARTS;
        group.open = takes_more.then_some(own);
        true
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn members(&self, group: Group) -> impl Iterator<Item = usize> {
        let next = |index: &u16| Some(self.next[usize::from(*index)]).filter(|next| *next != NONE);
        std::iter::successors(Some(group.first), next).map(usize::from)
    }
}

/// Whether the kernel's split would make this packet after those in the group.
fn follows(group: &Group, own: Part, head: &[u8], part: Part, packet: &[u8]) -> bool {
    let size = head.len() - own.payload;
    let more = packet.len() - part.payload;
    let (t, before) = (part.transport, group.len - own.payload);
    (own.kind, own.is_v6, own.payload) == (part.kind, part.is_v6, part.payload)
        && more <= size
        && group.len + more <= MAX_JOINED
        && are_ip_headers_alike(head, packet, group.count, part.is_v6)
        && head[t..t + 4] == packet[t..t + 4]
        && match part.kind {
            Kind::Udp => true,
            Kind::Tcp => {
                let sequence =
                    |packet: &[u8]| u32::from(word(packet, t + 4)) << 16 | u32::from(word(packet, t + 6));
                sequence(packet) == sequence(head).wrapping_add(before as u32)
                    && head[t + 8..t + 13] == packet[t + 8..t + 13]
                    // Window, urgent pointer, options.
                    && head[t + 14..t + 16] == packet[t + 14..t + 16]
                    && head[t + 18..part.payload] == packet[t + 18..part.payload]
            }
        }
}

fn are_ip_headers_alike(head: &[u8], packet: &[u8], number: u16, is_v6: bool) -> bool {
    if is_v6 {
        return head[..4] == packet[..4] && head[6..V6_HEADER] == packet[6..V6_HEADER];
    }
    let is_atomic = word(head, 6) & DONT_FRAGMENT != 0;
    let is_numbered = is_atomic || word(packet, 4) == word(head, 4).wrapping_add(number);
    is_numbered && head[..2] == packet[..2] && head[6..10] == packet[6..10] && head[12..20] == packet[12..20]
}

/// The headers of a joined packet, and before them the kernel's own.
pub(super) struct Headers {
    bytes: [u8; vnet::LEN + MAX_HEADERS],
    len: usize,
}

impl Headers {
    /// `None` if the group is a single packet. `last` tells whether the data is to be passed on at once (PSH).
    pub(super) fn of(group: Group, first: &[u8], last: &[u8]) -> Option<Self> {
        let part = group.part.filter(|_| group.count > 1)?;
        let mut bytes = [0; vnet::LEN + MAX_HEADERS];
        let len = vnet::LEN + part.payload;
        bytes[vnet::LEN..len].copy_from_slice(&first[..part.payload]);
        let headers = &mut bytes[vnet::LEN..len];
        if part.is_v6 {
            put(headers, 4, (group.len - V6_HEADER) as u16);
        } else {
            put(headers, 2, group.len as u16);
            put(headers, 10, 0);
            put(headers, 10, !checksum(&headers[..V4_HEADER], 0));
        }
        let (kind, checksum_offset) = match (part.kind, part.is_v6) {
            (Kind::Tcp, false) => (TCP_V4, TCP_CHECKSUM),
            (Kind::Tcp, true) => (TCP_V6, TCP_CHECKSUM),
            (Kind::Udp, _) => (UDP_L4, UDP_CHECKSUM),
        };
        let segment_len = group.len - part.transport;
        match part.kind {
            Kind::Tcp => headers[part.transport + 13] |= last[part.transport + 13] & PSH,
            Kind::Udp => put(headers, part.transport + 4, segment_len as u16),
        }
        // The kernel adds what the transport's header and payload give.
        let addresses = if part.is_v6 { 8..40 } else { 12..20 };
        let besides = checksum(&headers[addresses], u64::from(part.protocol()) + segment_len as u64);
        put(headers, part.transport + checksum_offset, besides);
        let header = Header {
            flags: NEEDS_CHECKSUM,
            kind,
            headers_len: part.payload as u16,
            size: (first.len() - part.payload) as u16,
            checksum_start: part.transport as u16,
            checksum_offset: checksum_offset as u16,
        };
        bytes[..vnet::LEN].copy_from_slice(&header.write());
        Some(Self { bytes, len })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Where each part's payload begins.
    pub(super) fn payload(&self) -> usize {
        self.len - vnet::LEN
    }
}
