//! Joining and splitting against a model of the kernel: tun-rs' own split, written by others.

use std::{collections::BTreeMap, io};

use proptest::prelude::*;
use tun_rs::{VirtioNetHdr, gso_split};

use super::{
    split::{Splitter, TCP, UDP, complete, put, transport_sum, word},
    vnet::{self, Header, NEEDS_CHECKSUM},
    writer::Writer,
};
use crate::packet::checksum;

const SLOTS: usize = 80;

/// What is strange about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oddity {
    None,
    Push,
    Fin,
    PureAck,
    WrongChecksum,
    WrongHeaderChecksum,
    NoChecksum,
    Fragment,
    Options,
    OtherProtocol,
    Repeated,
    OtherTrafficClass,
    TrailingByte,
}

/// Packets of one flow, one after the other. The hop limit tells flows apart in what comes out.
#[derive(Debug, Clone)]
struct Flow {
    number: u8,
    is_v6: bool,
    is_tcp: bool,
    is_atomic: bool,
    sequence: u32,
    id: u16,
}

impl Flow {
    fn new(number: u8) -> Self {
        let [is_tcp, is_v6, is_atomic] = [number & 1 != 0, number & 2 != 0, number & 4 != 0];
        // Sequences wrap.
        Self { number, is_v6, is_tcp, is_atomic, sequence: u32::MAX - 3000, id: u16::MAX - 3 }
    }

    fn packet(&mut self, size: usize, oddity: Oddity) -> Vec<u8> {
        let payload: Vec<u8> = (0..size).map(|at| (at * 7 + usize::from(self.id)) as u8).collect();
        let is_empty = oddity == Oddity::PureAck && self.is_tcp;
        let payload = if is_empty { &[][..] } else { &payload[..] };
        let protocol = match (oddity, self.is_tcp) {
            (Oddity::OtherProtocol, _) => 132,
            (_, true) => TCP,
            (_, false) => UDP,
        };
        let segment = self.segment(payload, oddity);
        let mut packet = self.ip_header(segment.len(), protocol, oddity);
        let transport = packet.len();
        packet.extend(segment);
        let at = transport + if self.is_tcp { 16 } else { 6 };
        let sum = !transport_sum(&packet, transport, protocol);
        let sum = if sum == 0 && !self.is_tcp { 0xffff } else { sum };
        if oddity != Oddity::NoChecksum || self.is_tcp {
            put(&mut packet, at, sum.wrapping_add(u16::from(oddity == Oddity::WrongChecksum)));
        }
        if oddity == Oddity::TrailingByte {
            packet.push(9);
        }
        if oddity != Oddity::Repeated {
            self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        }
        self.id = self.id.wrapping_add(1);
        packet
    }

    fn segment(&self, payload: &[u8], oddity: Oddity) -> Vec<u8> {
        let port = 1000 + u16::from(self.number);
        let mut segment = [port.to_be_bytes(), 80u16.to_be_bytes()].concat();
        if self.is_tcp {
            let flags = 0x10 | u8::from(oddity == Oddity::Push) << 3 | u8::from(oddity == Oddity::Fin);
            segment.extend(self.sequence.to_be_bytes());
            segment.extend([0, 0, 0, 7, 0x80, flags, 1, 0, 0, 0, 0, 0]);
            segment.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        } else {
            segment.extend((8 + payload.len() as u16).to_be_bytes());
            segment.extend([0, 0]);
        }
        segment.extend(payload);
        segment
    }

    fn ip_header(&self, segment_len: usize, protocol: u8, oddity: Oddity) -> Vec<u8> {
        let (class, hops) = (u8::from(oddity == Oddity::OtherTrafficClass) << 4, self.number + 1);
        if self.is_v6 {
            let mut header = vec![0x60 | class >> 4, 0, 0, 0];
            header.extend((segment_len as u16).to_be_bytes());
            header.extend([protocol, hops]);
            header.extend([1; 16]);
            header.extend([2; 16]);
            return header;
        }
        let has_options = oddity == Oddity::Options;
        let mut header = vec![if has_options { 0x46 } else { 0x45 }, class, 0, 0];
        header.extend(self.id.to_be_bytes());
        let fragment = match (oddity, self.is_atomic) {
            (Oddity::Fragment, _) => 0x2000,
            (_, true) => 0x4000u16,
            (_, false) => 0,
        };
        header.extend(fragment.to_be_bytes());
        header.extend([hops, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        if has_options {
            header.extend([1, 1, 1, 0]);
        }
        let len = (header.len() + segment_len) as u16;
        put(&mut header, 2, len);
        let sum = checksum(&[&header]);
        put(&mut header, 10, sum ^ u16::from(oddity == Oddity::WrongHeaderChecksum));
        header
    }
}

fn oddity() -> impl Strategy<Value = Oddity> {
    use Oddity::*;
    let odd = [
        Push,
        Fin,
        PureAck,
        WrongChecksum,
        WrongHeaderChecksum,
        NoChecksum,
        Fragment,
        Options,
        OtherProtocol,
        Repeated,
        OtherTrafficClass,
        TrailingByte,
    ];
    prop_oneof![6 => Just(None), 1 => proptest::sample::select(odd.to_vec())]
}

fn batch() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let size = prop_oneof![6 => Just(1200usize), 1 => 1..1400usize, 1 => Just(20_000usize)];
    let run = (0u8..8, 1..12usize, size, oddity());
    proptest::collection::vec(run, 1..20).prop_map(|runs| {
        let mut flows: Vec<Flow> = (0..8).map(Flow::new).collect();
        let mut packets = Vec::new();
        for (number, count, size, oddity) in runs {
            let flow = &mut flows[usize::from(number)];
            packets.extend((1..count).map(|_| flow.packet(size, Oddity::None)));
            packets.push(flow.packet(size, oddity));
        }
        packets.truncate(SLOTS);
        packets
    })
}

/// What the kernel makes of what it is given, by tun-rs and by our own split.
fn kernel(message: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = message.split_first_chunk().unwrap();
    let header = Header::read(header);
    if header.kind == vnet::NONE {
        return vec![packet.to_vec()];
    }
    assert!(packet.len() <= 65_535);
    let theirs = VirtioNetHdr::decode(message).unwrap();
    let (mut out, mut sizes) = (vec![vec![0; 65_535]; 64], vec![0; 64]);
    let count =
        gso_split(&mut packet.to_vec(), theirs, &mut out, &mut sizes, 0, packet[0] >> 4 == 6).unwrap();
    let segments: Vec<_> = (0..count).map(|number| out[number][..sizes[number]].to_vec()).collect();
    assert_eq!(split(packet, header), segments);
    segments
}

fn split(packet: &[u8], header: Header) -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new();
    let mut count = splitter.split(packet, header);
    let mut segments = Vec::new();
    while let Some(some) = count {
        segments.extend((0..some).map(|index| splitter.segment(index).to_vec()));
        count = splitter.resume(packet);
    }
    segments
}

/// Flows by their hop limits, each in order. Identifications without a meaning are left out.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<u8, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<u8, Vec<Vec<u8>>>::new();
    for packet in packets {
        let mut packet = packet.clone();
        let is_v4 = packet[0] >> 4 == 4;
        if is_v4 && packet[6] == 0x40 {
            let wrong = checksum(&[&packet[..20]]);
            put(&mut packet, 4, 0);
            put(&mut packet, 10, wrong);
        }
        flows.entry(packet[if is_v4 { 8 } else { 7 }]).or_default().push(packet);
    }
    flows
}

fn writer(packets: &[Vec<u8>]) -> Writer {
    let mut writer = Writer::with_slots(SLOTS);
    fill(&mut writer, packets);
    writer
}

fn fill(writer: &mut Writer, packets: &[Vec<u8>]) {
    for packet in packets {
        writer.room()[..packet.len()].copy_from_slice(packet);
        writer.keep(packet.len());
    }
}

/// What arrives, how many calls were made, and how many packets were refused.
fn flush(
    writer: &mut Writer,
    joins: [bool; 2],
    mut fault: impl FnMut(&Header) -> Option<i32>,
) -> (Vec<Vec<u8>>, usize, u64) {
    let (mut arrived, mut calls) = (Vec::new(), 0);
    let refused = writer.flush_to(joins, true, |parts| {
        calls += 1;
        let message: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let header = Header::read(message.first_chunk().unwrap());
        if let Some(error) = fault(&header) {
            return Err(io::Error::from_raw_os_error(error));
        }
        arrived.extend(kernel(&message));
        Ok(())
    });
    (arrived, calls, refused)
}

proptest! {
    #[test]
    fn what_was_joined_comes_out_of_the_kernels_split_as_it_was(packets in batch(), udp: bool) {
        let (arrived, _, refused) = flush(&mut writer(&packets), [true, udp], |_| None);
        prop_assert_eq!((by_flow(&arrived), refused), (by_flow(&packets), 0));
    }

    #[test]
    fn whatever_is_refused_joined_arrives_in_order(packets in batch(), error in 1..40i32, every in 1..4usize) {
        let mut count = 0;
        let (arrived, _, refused) = flush(&mut writer(&packets), [true; 2], |header| {
            count += 1;
            (header.kind != vnet::NONE && count % every == 0).then_some(error)
        });
        prop_assert_eq!((by_flow(&arrived), refused), (by_flow(&packets), 0));
    }

    #[test]
    fn any_bytes_can_be_split_completed_or_joined(
        header in any::<[u8; vnet::LEN]>(),
        kind in proptest::sample::select(vec![0u8, 1, 4, 5, 0x81, 0x84]),
        first in proptest::sample::select(vec![0x45u8, 0x4f, 0x60]),
        start in 0..70u16,
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..20),
    ) {
        let mut header = Header { kind, ..Header::read(&header) };
        header.checksum_start = start;
        for packet in &packets {
            let mut packet = packet.clone();
            packet[0] = first;
            for segment in split(&packet, header) {
                prop_assert!(segment.len() <= packet.len());
            }
            complete(&mut packet, header);
        }
        let (arrived, ..) = flush(&mut writer(&packets), [true; 2], |_| None);
        prop_assert_eq!(arrived, packets);
    }
}

/// As in a download: one flow, full segments, a shorter one at its end.
fn download(number: u8, count: usize) -> Vec<Vec<u8>> {
    let mut flow = Flow::new(number);
    let mut packets: Vec<_> = (1..count).map(|_| flow.packet(1200, Oddity::None)).collect();
    packets.push(flow.packet(100, Oddity::None));
    packets
}

#[test]
fn a_run_of_segments_is_one_call_of_each_protocol_and_family() {
    for number in 0..8 {
        let (arrived, calls, _) = flush(&mut writer(&download(number, 40)), [true; 2], |_| None);
        assert_eq!((arrived.len(), calls), (40, 1), "flow {number}");
        let (_, calls, _) = flush(&mut writer(&download(number, 80)), [true; 2], |_| None);
        assert_eq!(calls, 2, "64 KB or 64 segments at most, flow {number}");
    }
    let (_, calls, _) = flush(&mut writer(&download(0, 40)), [true, false], |_| None);
    assert_eq!(calls, 40, "UDP was joined for a kernel that does not split it");
}

#[test]
fn interleaved_flows_are_joined_each() {
    let flows: Vec<_> = (0..4).map(|number| download(number, 20)).collect();
    let packets: Vec<_> = (0..80).map(|at| flows[at % 4][at / 4].clone()).collect();
    assert_eq!(flush(&mut writer(&packets), [true; 2], |_| None).1, 4);
}

#[test]
fn a_kernel_that_refuses_one_kind_joined_is_not_asked_again_soon_and_the_other_stays_joined() {
    for error in [libc::EINVAL, libc::EIO, libc::ENOSPC] {
        let (tcp, udp) = (download(1, 20), download(0, 20));
        let packets = [tcp, udp].concat();
        let mut writer = writer(&packets);
        let refuse_udp = |header: &Header| (header.kind == vnet::UDP_L4).then_some(error);
        assert_eq!(flush(&mut writer, [true; 2], refuse_udp).1, 1 + 1 + 20);
        fill(&mut writer, &packets);
        let (arrived, calls, refused) = flush(&mut writer, [true; 2], |_| None);
        assert_eq!((arrived.len(), calls, refused), (40, 1 + 20, 0));
        // After a while it is.
        for _ in 0..16_384 / 80 + 1 {
            fill(&mut writer, &download(0, 80));
            flush(&mut writer, [true; 2], |_| None);
        }
        fill(&mut writer, &packets);
        assert_eq!(flush(&mut writer, [true; 2], |_| None).1, 2);
    }
}

#[test]
fn want_of_memory_and_an_interface_that_takes_nothing_say_nothing_of_joining() {
    let packets = download(1, 20);
    let mut writer = writer(&packets);
    for error in [libc::ENOMEM, libc::ENOBUFS, libc::EAGAIN] {
        let refuse_joined = |header: &Header| (header.kind != vnet::NONE).then_some(error);
        assert_eq!(flush(&mut writer, [true; 2], refuse_joined).0.len(), 20);
        fill(&mut writer, &packets);
    }
    assert_eq!(flush(&mut writer, [true; 2], |_| Some(libc::EIO)).2, 20);
    fill(&mut writer, &packets);
    assert_eq!(flush(&mut writer, [true; 2], |_| None).1, 1);
}

/// Joins a download into one message of the kernel.
fn joined(number: u8, count: usize) -> (Header, Vec<u8>) {
    let mut message = Vec::new();
    writer(&download(number, count)).flush_to([true; 2], true, |parts| {
        message = parts.iter().flat_map(|part| part.to_vec()).collect();
        Ok(())
    });
    (Header::read(message.first_chunk().unwrap()), message.split_off(vnet::LEN))
}

#[test]
fn a_packet_of_thousands_of_segments_is_split_whole() {
    for number in [1, 3] {
        let (header, packet) = joined(number, 40);
        let segments = split(&packet, Header { size: 8, ..header });
        let payload = usize::from(header.headers_len);
        assert_eq!(segments.len(), (packet.len() - payload).div_ceil(8));
        let carried: Vec<u8> = segments.iter().flat_map(|segment| segment[payload..].to_vec()).collect();
        assert!(carried == packet[payload..]);
        let transport = usize::from(header.checksum_start);
        assert!(segments.iter().all(|segment| transport_sum(segment, transport, TCP) == 0xffff));
    }
}

#[test]
fn a_checksum_that_the_kernel_began_is_completed() {
    for number in 0..4 {
        for size in 0..300 {
            let whole = Flow::new(number).packet(1 + size, Oddity::None);
            let (transport, offset) =
                (if number & 2 != 0 { 40 } else { 20 }, if number & 1 != 0 { 16 } else { 6 });
            let mut begun = whole.clone();
            put(&mut begun, transport + offset, 0);
            let protocol = if number & 1 != 0 { TCP } else { UDP };
            let addresses = if number & 2 != 0 { 8..40 } else { 12..20 };
            let segment_len = ((whole.len() - transport) as u16).to_be_bytes();
            let besides = !checksum(&[&whole[addresses], &[0, protocol], &segment_len]);
            put(&mut begun, transport + offset, besides);
            let header = Header {
                flags: NEEDS_CHECKSUM,
                checksum_start: transport as u16,
                checksum_offset: offset as u16,
                ..Header::default()
            };
            assert!(complete(&mut begun, header));
            assert_eq!(begun, whole);
        }
    }
}

#[test]
fn a_udp_sum_of_zero_is_written_in_its_other_form() {
    let mut flow = Flow::new(2);
    // The payload is chosen so that everything adds up.
    let mut packet = flow.packet(2, Oddity::NoChecksum);
    let rest = !transport_sum(&packet, 40, UDP);
    let payload = word(&packet, 48);
    let (sum, carry) = payload.overflowing_add(rest);
    put(&mut packet, 48, sum + u16::from(carry));
    assert_eq!(transport_sum(&packet, 40, UDP), 0xffff);
    let besides = !checksum(&[&packet[8..40], &[0, UDP], &10u16.to_be_bytes()]);
    put(&mut packet, 46, besides);
    let header =
        Header { flags: NEEDS_CHECKSUM, checksum_start: 40, checksum_offset: 6, ..Header::default() };
    assert!(complete(&mut packet, header));
    assert_eq!(word(&packet, 46), 0xffff, "0 would say that there is none, which IPv6 does not allow");
}
