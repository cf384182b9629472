//! The filter by packets, as both systems would send them.

use std::{net::IpAddr, ops::RangeInclusive};

use proptest::prelude::*;

use super::*;
use crate::packet;

const HERE: &str = "100.64.0.1";
const THERE: &str = "100.64.0.2";
const VIA: Via = Via(7);

fn ip(protocol: u8, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (from.parse::<IpAddr>().unwrap(), to.parse::<IpAddr>().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header[6] = protocol;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            header
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
    };
    packet.extend(payload);
    packet
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    ip(header::UDP, from.0, to.0, &[ports(from.1, to.1), vec![0, 8, 0, 0]].concat())
}

fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    let mut segment = [ports(from.1, to.1), vec![0; 16]].concat();
    segment[13] = flags;
    ip(header::TCP, from.0, to.0, &segment)
}

fn echo(from: &str, to: &str, kind: u8, id: u16) -> Vec<u8> {
    let protocol = if from.contains(':') { header::ICMP_V6 } else { header::ICMP_V4 };
    ip(protocol, from, to, &[&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1]].concat())
}

fn unreachable(about: &[u8]) -> Vec<u8> {
    told_by("100.64.0.9", about)
}

fn told_by(teller: &str, about: &[u8]) -> Vec<u8> {
    let start = &about[..28.min(about.len())];
    ip(header::ICMP_V4, teller, HERE, &[&[3, 1, 0, 0, 0, 0, 0, 0], start].concat())
}

fn rule(source: &str, protocol: Protocol, ports: &[RangeInclusive<u16>]) -> Rule {
    let services = vec![Service { protocol, ports: ports.to_vec() }];
    Rule { sources: vec![source.parse().unwrap()], destinations: vec![], services }
}

/// A filter, and its time.
struct Lab {
    filter: Filter,
    now: Instant,
}

impl Lab {
    fn new(rules: Vec<Rule>) -> Self {
        let now = Instant::now();
        Self { filter: Filter::new(rules, now), now }
    }

    /// The same, when connections from before are not picked up any more.
    fn settled(rules: Vec<Rule>) -> Self {
        let mut lab = Self::new(rules);
        lab.wait(PICKUP);
        lab
    }

    fn wait(&mut self, span: Duration) {
        self.now += span;
    }

    fn send(&mut self, packet: &[u8]) {
        self.filter.note_outbound(packet, VIA, self.now);
    }

    fn passes(&mut self, packet: &[u8]) -> bool {
        self.filter.judge_inbound(packet, VIA, self.now).is_ok()
    }
}

#[test]
fn without_rules_nothing_comes_in_but_answers() {
    let mut lab = Lab::settled(vec![]);
    for packet in [
        udp((THERE, 53), (HERE, 4000)),
        tcp((THERE, 4000), (HERE, 22), SYN),
        tcp((THERE, 4000), (HERE, 22), ACK),
        tcp((THERE, 4000), (HERE, 22), SYN | ACK),
        echo(THERE, HERE, 8, 1),
        echo(THERE, HERE, 0, 1),
        ip(47, THERE, HERE, &[0; 8]),
    ] {
        assert_eq!(lab.filter.judge_inbound(&packet, VIA, lab.now), Err(Refusal::Denied), "{packet:x?}");
    }
    lab.send(&udp((HERE, 4000), (THERE, 53)));
    lab.send(&tcp((HERE, 4000), (THERE, 80), SYN));
    lab.send(&echo(HERE, THERE, 8, 7));
    lab.send(&ip(47, HERE, THERE, &[0; 8]));
    assert!(lab.passes(&udp((THERE, 53), (HERE, 4000))));
    assert!(!lab.passes(&udp((THERE, 54), (HERE, 4000))) && !lab.passes(&udp((THERE, 53), (HERE, 4001))));
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN | ACK)));
    assert!(lab.passes(&echo(THERE, HERE, 0, 7)) && !lab.passes(&echo(THERE, HERE, 0, 8)));
    assert!(lab.passes(&ip(47, THERE, HERE, &[0; 8])));
}

#[test]
fn a_connection_of_ours_is_no_way_in() {
    let mut lab = Lab::settled(vec![]);
    lab.send(&tcp((HERE, 4000), (THERE, 80), SYN));
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN | ACK)));
    assert!(!lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN)));
    assert!(!lab.passes(&echo(THERE, HERE, 8, 4000)));
}

#[test]
fn rules_are_by_source_protocol_port_and_destination() {
    let mut to_db = rule("100.64.0.0/24", Protocol::Tcp, &[5432..=5432]);
    to_db.destinations = vec!["10.1.0.0/16".parse().unwrap()];
    let rules = vec![
        rule("100.64.0.2/32", Protocol::Tcp, &[22..=22, 8000..=8999]),
        to_db,
        rule("fd00::/8", Protocol::Icmp, &[]),
    ];
    let mut lab = Lab::settled(rules);
    assert!(lab.passes(&tcp((THERE, 1), (HERE, 22), SYN)) && lab.passes(&tcp((THERE, 1), (HERE, 8500), SYN)));
    assert!(!lab.passes(&tcp((THERE, 1), (HERE, 23), SYN)) && !lab.passes(&udp((THERE, 1), (HERE, 22))));
    assert!(!lab.passes(&tcp(("100.64.0.3", 1), (HERE, 22), SYN)));
    assert!(lab.passes(&tcp(("100.64.0.3", 1), ("10.1.2.3", 5432), SYN)));
    assert!(!lab.passes(&tcp(("100.64.0.3", 1), (HERE, 5432), SYN)));
    assert!(lab.passes(&echo("fd00::2", "fd00::1", 128, 1)) && !lab.passes(&echo(THERE, HERE, 8, 1)));
}

#[test]
fn everything_from_everybody_passes_and_only_tcp_is_remembered() {
    let mut lab = Lab::settled(vec![Rule::all()]);
    for port in 1..1000 {
        assert!(lab.passes(&udp((THERE, port), (HERE, 53))));
        lab.send(&udp((HERE, 53), (THERE, port)));
    }
    lab.send(&echo(HERE, THERE, 8, 7));
    assert!(lab.passes(&echo(THERE, HERE, 0, 7)));
    assert_eq!(lab.filter.flows(), 0);
    assert!(lab.passes(&tcp((THERE, 1), (HERE, 22), SYN)));
    assert_eq!(lab.filter.flows(), 1);
}

#[test]
fn a_permission_that_ends_ends_what_came_of_it() {
    let mut lab = Lab::settled(vec![rule("100.64.0.2/32", Protocol::Tcp, &[22..=23])]);
    for port in [22, 23] {
        assert!(lab.passes(&tcp((THERE, 9), (HERE, port), SYN)));
        lab.send(&tcp((HERE, port), (THERE, 9), SYN | ACK));
    }
    lab.send(&tcp((HERE, 4000), (THERE, 80), SYN));
    lab.filter.replace_rules(vec![rule("100.64.0.2/32", Protocol::Tcp, &[22..=22])]);
    assert!(lab.passes(&tcp((THERE, 9), (HERE, 22), ACK)));
    assert!(!lab.passes(&tcp((THERE, 9), (HERE, 23), ACK)));
    lab.send(&tcp((HERE, 23), (THERE, 9), ACK));
    assert!(!lab.passes(&tcp((THERE, 9), (HERE, 23), ACK)), "whatever this system still sends on it");
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN | ACK)));
    lab.filter.replace_rules(vec![rule("100.64.0.2/32", Protocol::Tcp, &[22..=23])]);
    assert!(lab.passes(&tcp((THERE, 9), (HERE, 23), ACK)), "and back");
}

#[test]
fn what_this_system_opened_stays_when_permissions_end() {
    let mut lab = Lab::settled(vec![Rule::all()]);
    lab.send(&tcp((HERE, 4000), (THERE, 80), SYN));
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN | ACK)));
    lab.filter.replace_rules(vec![]);
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), ACK)));
}

#[test]
fn a_connection_that_was_reset_is_over_whatever_is_still_in_flight() {
    let mut lab = Lab::settled(vec![]);
    let (here, there) = ((HERE, 4000), (THERE, 80));
    lab.send(&tcp(here, there, SYN));
    assert!(lab.passes(&tcp(there, here, SYN | ACK)));
    lab.send(&tcp(here, there, RST));
    assert!(lab.passes(&tcp(there, here, ACK)));
    lab.wait(Duration::from_secs(61));
    assert!(!lab.passes(&tcp(there, here, ACK)));
}

#[test]
fn who_pretends_to_go_on_with_connections_from_before_pushes_out_none() {
    let mut lab = Lab::new(vec![]);
    lab.send(&tcp((HERE, 4000), (THERE, 80), ACK));
    for port in 1..20_000 {
        assert!(lab.passes(&tcp((THERE, 81), (HERE, port), ACK)));
        lab.send(&tcp((HERE, port), (THERE, 81), RST));
    }
    assert!(lab.filter.flows() < 2000, "{}", lab.filter.flows());
    lab.wait(PICKUP);
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), ACK)));
    assert!(!lab.passes(&tcp((THERE, 81), (HERE, 19_999), ACK)), "what was not answered is not kept");
}

#[test]
fn connections_from_before_a_restart_go_on_and_later_none_is_picked_up() {
    let mut lab = Lab::new(vec![]);
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), ACK)));
    lab.send(&tcp((HERE, 4000), (THERE, 80), ACK));
    assert!(!lab.passes(&tcp((THERE, 80), (HERE, 4001), SYN)));
    assert!(!lab.passes(&tcp((THERE, 80), (HERE, 4001), RST)));
    lab.wait(PICKUP);
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), ACK)));
    assert!(!lab.passes(&tcp((THERE, 80), (HERE, 4002), ACK)));
    lab.send(&tcp((HERE, 4002), (THERE, 80), ACK));
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4002), ACK)), "what this system sends opens the way");
}

#[test]
fn flows_end_by_time_and_the_answered_ones_later() {
    let mut lab = Lab::settled(vec![]);
    lab.send(&udp((HERE, 1), (THERE, 53)));
    lab.send(&udp((HERE, 2), (THERE, 53)));
    assert!(lab.passes(&udp((THERE, 53), (HERE, 2))));
    lab.wait(Duration::from_secs(61));
    assert!(!lab.passes(&udp((THERE, 53), (HERE, 1))) && lab.passes(&udp((THERE, 53), (HERE, 2))));
    lab.wait(Duration::from_secs(301));
    assert!(!lab.passes(&udp((THERE, 53), (HERE, 2))));
    lab.send(&echo(HERE, THERE, 0, 1));
    assert_eq!(lab.filter.flows(), 0, "and nothing of them is kept");
}

#[test]
fn a_tcp_connection_lasts_for_hours_and_not_beyond_its_end() {
    let mut lab = Lab::settled(vec![]);
    let (here, there) = ((HERE, 4000), (THERE, 80));
    lab.send(&tcp(here, there, SYN));
    assert!(lab.passes(&tcp(there, here, SYN | ACK)));
    lab.wait(Duration::from_secs(7200));
    assert!(lab.passes(&tcp(there, here, ACK)));
    lab.send(&tcp(here, there, FIN | ACK));
    assert!(lab.passes(&tcp(there, here, FIN | ACK)) && lab.passes(&tcp(there, here, ACK)));
    lab.wait(Duration::from_secs(61));
    assert!(!lab.passes(&tcp(there, here, ACK)));
    lab.send(&tcp(here, there, SYN));
    assert!(lab.passes(&tcp(there, here, SYN | ACK)), "the same ports again");
    lab.wait(Duration::from_secs(7200));
    assert!(lab.passes(&tcp(there, here, ACK)));
}

#[test]
fn a_flood_pushes_out_only_its_own_kind() {
    let mut lab = Lab::settled(vec![rule("100.64.0.0/10", Protocol::Tcp, &[22..=22])]);
    lab.send(&udp((HERE, 1), (THERE, 53)));
    lab.send(&tcp((HERE, 4000), (THERE, 80), SYN));
    assert!(lab.passes(&tcp((THERE, 80), (HERE, 4000), SYN | ACK)));
    for number in 0..100_000u32 {
        let (source, port) = (format!("100.65.{}.1", number % 250), (number / 250) as u16 + 1);
        assert!(lab.passes(&tcp((&source, port), (HERE, 22), SYN)));
        lab.send(&tcp((HERE, 22), (&source, port), SYN | ACK));
        assert!(!lab.passes(&udp((&source, port), (HERE, 1))));
    }
    assert!(lab.filter.flows() < 30_000, "{}", lab.filter.flows());
    assert!(lab.passes(&udp((THERE, 53), (HERE, 1))) && lab.passes(&tcp((THERE, 80), (HERE, 4000), ACK)));
}

#[test]
fn errors_pass_for_what_is_under_way() {
    let mut lab = Lab::settled(vec![rule("100.64.0.7/32", Protocol::Udp, &[53..=53])]);
    let sent = udp((HERE, 1), (THERE, 53));
    assert!(!lab.passes(&unreachable(&sent)));
    lab.send(&sent);
    assert!(lab.passes(&unreachable(&sent)));
    assert!(!lab.passes(&unreachable(&udp((HERE, 2), (THERE, 53)))), "never sent");
    assert!(!lab.passes(&unreachable(&udp((THERE, 53), (HERE, 1)))), "not ours");
    let answer = udp((HERE, 53), ("100.64.0.7", 9));
    assert!(lab.passes(&told_by("100.64.0.7", &answer)), "an answer that needs no entry");
    assert!(!lab.passes(&unreachable(&answer)), "and anybody might invent");
    assert!(!lab.passes(&unreachable(&udp(("100.64.0.3", 1), (THERE, 53)))), "about another's");
    let mut later = sent.clone();
    later[7] = 8;
    assert!(!lab.passes(&unreachable(&later)), "its ports are no ports");
    assert!(!lab.passes(&unreachable(&sent[..22])) && !lab.passes(&unreachable(&[])));
    let ping = echo(HERE, THERE, 8, 3);
    lab.send(&ping);
    assert!(lab.passes(&unreachable(&ping)));
}

/// A part of a UDP datagram of THERE's, 16 bytes of it, at so many times 8 bytes.
fn part(offset: u8, more: bool, id: u8) -> Vec<u8> {
    let mut packet = ip(header::UDP, THERE, HERE, &[ports(1, 2), vec![0; 12]].concat());
    (packet[5], packet[6], packet[7]) = (id, if more { 0x20 } else { 0 }, offset);
    packet
}

#[test]
fn fragments_follow_their_first_and_none_rewrites_it() {
    let mut lab = Lab::settled(vec![]);
    assert!(!lab.passes(&part(0, true, 1)) && !lab.passes(&part(2, false, 1)), "of what may not come");
    lab.send(&udp((HERE, 2), (THERE, 1)));
    assert!(!lab.passes(&part(2, false, 1)));
    assert!(lab.passes(&part(0, true, 1)) && lab.passes(&part(2, true, 1)) && lab.passes(&part(4, false, 1)));
    assert!(!lab.passes(&part(1, false, 1)), "over the first");
    assert!(!lab.passes(&part(2, false, 2)), "of another packet");
    lab.wait(Duration::from_secs(31));
    assert!(!lab.passes(&part(4, false, 1)));
    let mut tiny = tcp((THERE, 1), (HERE, 2), SYN);
    tiny.truncate(28);
    tiny[3] = 28;
    assert_eq!(lab.filter.judge_inbound(&tiny, VIA, lab.now), Err(Refusal::Malformed));
}

#[test]
fn first_fragments_without_end_are_forgotten() {
    let mut lab = Lab::settled(vec![Rule::all()]);
    for number in 0..5000u16 {
        let mut first = part(0, true, 0);
        first[4..6].copy_from_slice(&number.to_be_bytes());
        assert!(lab.passes(&first));
    }
    let mut oldest = part(2, false, 0);
    assert!(!lab.passes(&oldest));
    oldest[4..6].copy_from_slice(&4999u16.to_be_bytes());
    assert!(lab.passes(&oldest));
}

#[test]
fn ports_are_found_behind_ipv6_extension_headers() {
    let mut lab = Lab::settled(vec![rule("fd00::/8", Protocol::Udp, &[53..=53])]);
    let datagram = [ports(9, 53), vec![0, 8, 0, 0]].concat();
    let options = [&[60, 0, 0, 0, 0, 0, 0, 0], &[header::UDP, 0, 0, 0, 0, 0, 0, 0], &datagram[..]].concat();
    assert!(lab.passes(&ip(0, "fd00::2", "fd00::1", &options)));
    let first = [&[header::UDP, 0, 0, 1, 0, 0, 0, 7], &datagram[..], &[0; 8]].concat();
    assert!(lab.passes(&ip(44, "fd00::2", "fd00::1", &first)));
    let later = |place: u8| [&[header::TCP, 0, 0, place, 0, 0, 0, 7], &datagram[..]].concat();
    assert!(lab.passes(&ip(44, "fd00::2", "fd00::1", &later(16))));
    assert!(!lab.passes(&ip(44, "fd00::2", "fd00::1", &later(8))), "over the first");
    let endless = [60, 0, 0, 0, 0, 0, 0, 0].repeat(40);
    assert!(!lab.passes(&ip(60, "fd00::2", "fd00::1", &endless)));
}

#[test]
fn what_wireguard_padded_is_read_and_what_is_cut_short_is_not() {
    let mut lab = Lab::settled(vec![Rule::all()]);
    let datagram = udp((THERE, 1), (HERE, 2));
    let mut padded = datagram.clone();
    padded.resize(packet::padded_len(padded.len(), 1420), 0);
    assert!(lab.passes(&padded));
    for len in 0..datagram.len() {
        assert!(!lab.passes(&datagram[..len]), "{len} bytes");
    }
}

/// With numbers, and a payload of so many bytes.
fn numbered(from: (&str, u16), to: (&str, u16), flags: u8, numbers: [u32; 2], payload: usize) -> Vec<u8> {
    let mut segment = [ports(from.1, to.1), vec![0; 16 + payload]].concat();
    segment[4..8].copy_from_slice(&numbers[0].to_be_bytes());
    segment[8..12].copy_from_slice(&numbers[1].to_be_bytes());
    (segment[12], segment[13]) = (5 << 4, flags);
    ip(header::TCP, from.0, to.0, &segment)
}

impl Lab {
    /// What breaks where everything by that peer moves.
    fn break_all(&mut self, via: Via) -> Vec<Broken> {
        let mut broken = Vec::new();
        let looked = self.filter.break_connections(
            0..usize::MAX,
            usize::MAX,
            |by, _| by == via,
            |found| broken.push(found),
        );
        assert!(looked.is_all);
        self.filter.assert_sound();
        broken
    }

    /// A connection of ours, after the handshake.
    fn connect(&mut self, here: (&str, u16), there: (&str, u16), begin: [u32; 2]) {
        let [ours, theirs] = begin;
        self.send(&numbered(here, there, SYN, [ours, 0], 0));
        assert!(self.passes(&numbered(there, here, SYN | ACK, [theirs, ours.wrapping_add(1)], 0)));
        self.send(&numbered(here, there, ACK, begin.map(|number| number.wrapping_add(1)), 0));
    }
}

fn expected(lab: &mut Lab) -> [[Option<u32>; 2]; 2] {
    let broken = lab.break_all(VIA);
    assert_eq!(broken.len(), 1);
    [broken[0].expected_here, broken[0].expected_there]
}

const IDLE: ((&str, u16), (&str, u16)) = ((HERE, 4000), (THERE, 80));

#[test]
fn a_connection_that_breaks_says_what_each_end_expects_and_is_over() {
    for (here, there) in [IDLE, (("fd00::1", 4000), ("fd00::2", 80))] {
        let mut lab = Lab::settled(vec![]);
        lab.connect(here, there, [u32::MAX, 77]);
        lab.send(&numbered(here, there, ACK, [0, 78], 1000));
        lab.send(&numbered(here, there, ACK, [1000, 78], 200));
        assert!(lab.passes(&numbered(there, here, ACK, [78, 1200], 50)));
        let broken = lab.break_all(VIA);
        let ends = |(ip, port): (&str, u16)| (ip.parse::<IpAddr>().unwrap(), port).into();
        assert_eq!(
            broken,
            [Broken {
                local: ends(here),
                remote: ends(there),
                expected_here: [Some(78), Some(128)],
                expected_there: [Some(1200), None],
            }]
        );
        assert_eq!(lab.break_all(VIA), [], "once");
        lab.connect(here, there, [5, 6]);
        assert_eq!(lab.break_all(VIA).len(), 1, "the same ports again are another connection");
    }
}

#[test]
fn one_that_was_called_from_outside_breaks_as_well() {
    let mut lab = Lab::settled(vec![Rule::all()]);
    assert!(lab.passes(&numbered((THERE, 9), (HERE, 22), SYN, [10, 0], 0)));
    assert_eq!(lab.break_all(VIA), [], "nobody has answered");
    lab.send(&numbered((HERE, 22), (THERE, 9), SYN | ACK, [20, 11], 0));
    assert!(lab.passes(&numbered((THERE, 9), (HERE, 22), ACK, [11, 21], 0)));
    assert_eq!(expected(&mut lab), [[Some(11), None], [Some(21), None]]);
}

#[test]
fn who_missed_a_reset_is_told_so_for_as_long_as_the_connection_might_have_lasted() {
    let mut lab = Lab::settled(vec![]);
    let (here, there) = IDLE;
    lab.connect(here, there, [10, 20]);
    assert_eq!(lab.break_all(VIA).len(), 1);
    lab.wait(Duration::from_secs(7200));
    let goes_on = numbered(there, here, ACK, [21, 11], 5);
    assert!(lab.passes(&goes_on));
    assert_eq!(lab.filter.take_late().map(|late| late.expected), Some(11));
    lab.wait(Duration::from_secs(7440));
    assert!(!lab.passes(&goes_on) && lab.filter.take_late().is_none());
}

#[test]
fn what_nobody_answered_is_left_to_its_retry() {
    let mut lab = Lab::settled(vec![]);
    let (here, there) = IDLE;
    lab.send(&numbered(here, there, SYN, [10, 0], 0));
    assert_eq!(lab.break_all(VIA), []);
    lab.send(&numbered(here, there, SYN, [10, 0], 0));
    assert!(lab.passes(&numbered(there, here, SYN | ACK, [90, 11], 0)), "whoever answers now");
}

#[test]
fn half_closed_ones_break_and_ended_ones_are_left() {
    let (here, there) = IDLE;
    for is_ours in [true, false] {
        let mut lab = Lab::settled(vec![]);
        lab.connect(here, there, [10, 20]);
        if is_ours {
            lab.send(&numbered(here, there, FIN | ACK, [11, 21], 4));
            assert!(lab.passes(&numbered(there, here, ACK, [21, 16], 0)));
        } else {
            assert!(lab.passes(&numbered(there, here, FIN | ACK, [21, 11], 4)));
            lab.send(&numbered(here, there, ACK, [11, 26], 0));
        }
        let numbers = if is_ours { [21, 16] } else { [26, 11] };
        assert_eq!(expected(&mut lab), numbers.map(|number| [Some(number), None]));
    }
    let mut lab = Lab::settled(vec![]);
    lab.connect(here, there, [10, 20]);
    lab.send(&numbered(here, there, FIN | ACK, [11, 21], 0));
    assert!(lab.passes(&numbered(there, here, FIN | ACK, [21, 12], 0)));
    lab.connect((HERE, 4001), there, [10, 20]);
    lab.send(&numbered((HERE, 4001), there, RST, [11, 0], 0));
    lab.send(&udp(here, there));
    assert_eq!(lab.break_all(VIA), []);
}

#[test]
fn only_what_runs_by_that_peer_and_has_moved_breaks_and_a_few_at_a_time() {
    let mut lab = Lab::settled(vec![]);
    for port in 1..=100 {
        lab.connect((HERE, port), (THERE, 80), [1, 1]);
        lab.connect((HERE, port), ("100.64.0.3", 80), [1, 1]);
    }
    assert_eq!(lab.break_all(Via(8)), []);
    let (mut place, mut found) = (0, Vec::new());
    loop {
        let has_moved = |by, remote: IpAddr| by == VIA && remote.to_string() == THERE;
        let before = found.len();
        let looked = lab.filter.break_connections(place..place + 64, 10, has_moved, |one| found.push(one));
        assert!(looked.until - place <= 64 && found.len() - before <= 10 && looked.until > place);
        place = looked.until;
        if looked.is_all {
            break;
        }
    }
    assert_eq!(found.len(), 100);
    assert_eq!(lab.break_all(VIA).len(), 100, "the others");
}

proptest! {
    #[test]
    fn no_bytes_upset_the_filter(packets in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..120)), 0..20)) {
        let mut lab = Lab::new(vec![rule("0.0.0.0/1", Protocol::Any, &[]), rule("::/1", Protocol::Udp, &[5..=9])]);
        for (outbound, mut packet) in packets {
            // As often as not something like IP.
            if let Some(first) = packet.first_mut() && *first & 1 == 0 {
                *first = if *first & 2 == 0 { 0x45 } else { 0x60 };
            }
            if outbound { lab.send(&packet) } else { lab.passes(&packet); }
        }
    }

    /// The short way of what passed a moment ago leads where the long one does.
    #[test]
    fn what_passed_a_moment_ago_is_judged_as_ever(steps in proptest::collection::vec((0u16..4, 0u8..12, 0u64..3), 0..200)) {
        let rules = || vec![rule("100.64.0.2/32", Protocol::Tcp, &[2..=3]), rule("fd00::2/128", Protocol::Udp, &[1..=2])];
        let mut labs = [Lab::settled(rules()), Lab::settled(rules())];
        for (port, what, pause) in steps {
            let mut is_short = true;
            let verdicts = labs.each_mut().map(|lab| {
                let is_long = !std::mem::take(&mut is_short);
                lab.wait(Duration::from_secs(pause * 20));
                let (here, there) = ((HERE, port), (THERE, 80));
                match what {
                    0 => lab.send(&udp(here, there)),
                    1 => lab.send(&udp(("fd00::1", port), ("fd00::2", 80))),
                    2..=5 => lab.send(&tcp(here, there, [SYN, SYN | ACK, ACK, FIN | ACK][usize::from(what) - 2])),
                    6 => lab.filter.replace_rules(if port == 0 { rules() } else { vec![] }),
                    _ => {}
                }
                let flags = [ACK, SYN | ACK, SYN, RST, FIN | ACK][usize::from(what) % 5];
                let packets = [udp(there, here), udp(("fd00::2", 80), ("fd00::1", port)), tcp(there, here, flags), tcp(there, here, ACK)];
                packets.map(|packet| {
                    if is_long {
                        lab.filter.forget_recent();
                    }
                    lab.passes(&packet)
                })
            });
            prop_assert_eq!(verdicts[0], verdicts[1]);
        }
    }

    /// The entries' order and places hold together whatever happens.
    #[test]
    fn the_table_counts_right(steps in proptest::collection::vec((0u16..6, 0u8..5, 0u64..100), 0..200)) {
        let mut lab = Lab::new(vec![rule("100.64.0.2/32", Protocol::Tcp, &[3..=5])]);
        for (port, what, pause) in steps {
            lab.wait(Duration::from_secs(pause));
            let (here, there) = ((HERE, port), (THERE, 80));
            match what {
                0 => lab.send(&udp(here, there)),
                1 => lab.send(&tcp(here, there, SYN | ACK)),
                2 => { lab.passes(&udp(there, here)); }
                3 => { lab.passes(&tcp(there, here, SYN)); }
                _ => { lab.passes(&tcp(there, here, FIN | ACK)); }
            }
            lab.filter.assert_sound();
        }
        lab.wait(Duration::from_secs(8000));
        lab.send(&echo(HERE, THERE, 0, 1));
        prop_assert_eq!(lab.filter.flows(), 0);
    }
}
