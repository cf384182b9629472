//! Joining and splitting for fuzzers: whatever a batch holds comes out of the split as it went in, refused or not.

use std::io;

use proto::fuzzing::steps;
use tun_rs::checksum;

use super::{
    split::{MAX_PACKET, Splitter, complete, put, transport_sum},
    vnet::{self, Header},
    writer::Writer,
};

const SLOTS: usize = 64;
const TRANSPORT_BYTES: usize = 20;

/// Interface and tunnel without either: packets are joined as the kernel is given them, and split as it hands them over.
pub fn offloads(bytes: &[u8]) {
    let mut writer = Writer::with_slots(SLOTS);
    let (mut packets, mut faults) = (Vec::new(), 0);
    for (kind, bytes) in steps(bytes) {
        match kind {
            0..=0x3f => split_any(bytes),
            0x40 => faults = bytes.first().copied().unwrap_or_default(),
            _ => packets.extend(packet(kind, bytes)),
        }
        if packets.len() == SLOTS {
            check(&mut writer, std::mem::take(&mut packets), faults);
        }
    }
    check(&mut writer, packets, faults);
}

/// A header, then a packet: nothing is longer or more than it was.
fn split_any(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk() else { return };
    let header = Header::read(header);
    if packet.is_empty() || packet.len() > MAX_PACKET {
        return;
    }
    let segments = split(packet, header);
    assert!(segments.iter().all(|segment| segment.len() <= packet.len()));
    complete(&mut packet.to_vec(), header);
}

/// IP and TCP or UDP as the kind says, with right lengths and, mostly, checksums, around these bytes. The first of them
/// are for the headers.
fn packet(kind: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    let (is_tcp, is_v6) = (kind & 1 != 0, kind & 2 != 0);
    let (protocol, ip_header) = (if is_tcp { 6 } else { 17 }, if is_v6 { 40 } else { 20 });
    let (header, payload) = bytes.split_at_checked(4 + TRANSPORT_BYTES)?;
    let mut packet = vec![0; ip_header];
    if is_v6 {
        (packet[0], packet[6], packet[7]) = (0x60, protocol, header[0]);
    } else {
        (packet[0], packet[8], packet[9]) = (0x45, header[0], protocol);
        packet[4..8].copy_from_slice(&header[..4]);
    }
    let transport = if is_tcp { TRANSPORT_BYTES } else { 8 };
    packet.extend(&header[4..4 + transport]);
    packet.extend(payload);
    let (len, segment_len) = (packet.len() as u16, (packet.len() - ip_header) as u16);
    put(&mut packet, if is_v6 { 4 } else { 2 }, if is_v6 { segment_len } else { len });
    if is_tcp {
        packet[ip_header + 12] = 0x50;
    } else {
        put(&mut packet, ip_header + 4, segment_len);
    }
    if kind & 4 == 0 {
        let at = ip_header + if is_tcp { 16 } else { 6 };
        put(&mut packet, at, 0);
        let sum = !transport_sum(&packet, ip_header, protocol);
        put(&mut packet, at, if sum == 0 && !is_tcp { 0xffff } else { sum });
        if !is_v6 {
            let sum = !checksum(&packet[..ip_header], 0);
            put(&mut packet, 10, sum);
        }
    }
    Some(packet)
}

/// As many calls as `faults` has bits at their places are refused if they are joined.
fn check(writer: &mut Writer, mut packets: Vec<Vec<u8>>, faults: u8) {
    for packet in &packets {
        writer.room()[..packet.len()].copy_from_slice(packet);
        writer.keep(packet.len());
    }
    let (mut arrived, mut calls) = (Vec::new(), 0);
    let refused = writer.flush_to([true; 2], true, |parts| {
        let message: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let (header, packet) = message.split_first_chunk().expect("a header");
        let header = Header::read(header);
        calls += 1;
        if header.kind != vnet::NONE {
            if faults & 1 << (calls % 8) != 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            arrived.extend(split(packet, header));
        } else {
            arrived.push(packet.to_vec());
        }
        Ok(())
    });
    assert_eq!(refused, 0);
    for packets in [&mut packets, &mut arrived] {
        packets.iter_mut().for_each(|packet| forget_identification(packet));
        packets.sort();
    }
    assert!(packets == arrived, "{packets:x?} became {arrived:x?}");
}

/// That of a packet that may not be fragmented means nothing.
fn forget_identification(packet: &mut [u8]) {
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        let checksum = !checksum(&packet[..20], 0);
        put(packet, 4, 0);
        put(packet, 10, checksum);
    }
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
