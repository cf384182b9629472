//! What fuzzers call: the thread's own steps, with a real interface and real sockets in a network namespace of the calling thread (which needs root), one peer that has a session, and no
//! loop around them. Datagrams are handed over as if they had arrived; packets come through the kernel, which checks offload headers as it does those of any other program.

#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod floods;

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU16},
    time::{Duration, Instant},
};

use boringtun::noise::{Tunn, TunnResult};
use proto::fuzzing::{Target, steps};
use socket2::{Domain, Socket, Type};

use super::{Local, Worker};
use crate::{
    Command, Config, DEFAULT_MTU, Device, Drops, Filter, Peer, Policy, PrivateKey, PublicKey, Rule, Service,
    Via,
    answers::Answers,
    device::Reader,
    limit::{Activity, Strangers},
    noise::Noise,
    packet::udp_packet,
    peers::Peers,
    queue::Budget,
    routes::Routes,
    socket::{Path, Sockets},
    uapi::{Changes, Decoder, Request},
};

pub use crate::device::fuzzing::offloads;

const OWN_SECRET: [u8; 32] = [1; 32];
const PEER_SECRET: [u8; 32] = [7; 32];
const MESSAGE_PORT: u16 = 7444;
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 7));
const PEER_ENDPOINT: ([u8; 4], u16) = ([192, 0, 2, 7], 51820);
/// Where an initiation's first MAC begins.
const MAC1: usize = 116;
/// The largest IPv4 datagram.
const MAX_DATAGRAM: usize = 65_507;

/// Every target by its name: that of its binary, and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("datagrams", datagrams),
    ("packets", packets),
    ("uapi", uapi),
    ("filter", filter),
    ("offloads", offloads),
];

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

/// Network to interface: what strangers send, what the peer seals, and handshakes of the peer that were bent. The filter lets everything in until it is given other rules.
pub fn datagrams(bytes: &[u8]) {
    with_bench(|bench| {
        for (kind, bytes) in steps(bytes) {
            bench.hear(kind, bytes);
        }
    });
}

/// Interface to network: packets of this machine, each after the kernel's header of offloads.
pub fn packets(bytes: &[u8]) {
    with_bench(|bench| {
        for (kind, bytes) in steps(bytes) {
            bench.send(kind, bytes);
        }
    });
}

/// WireGuard's configuration protocol: whatever is asked is carried out, and what is told of it can be asked again.
pub fn uapi(bytes: &[u8]) {
    with_bench(|bench| {
        let (mut decoder, mut input) = (Decoder::new(|name| name.len().try_into().ok()), bytes);
        while let Some(request) = decoder.next(&mut input) {
            match request {
                Ok(Request::Set(changes)) => drop(bench.worker.configure(*changes)),
                Ok(Request::Capture(_)) => {}
                Ok(Request::Get) => assert!(bench.worker.describe().to_text().is_ascii()),
                Err(refusal) => assert!(refusal.errno > 0),
            }
        }
        let everything = Changes { replace_peers: true, ..Changes::default() };
        bench.worker.configure(everything).expect("nothing that can fail");
    });
}

/// The packet filter, under one rule, none and all, in a time that passes.
pub fn filter(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut filter = Filter::new(vec![rule()], now);
    for (kind, packet) in steps(bytes) {
        now += Duration::from_secs(u64::from(kind >> 3));
        let via = Via(u32::from(kind & 1));
        match kind % 8 {
            0..=2 => filter.note_outbound(packet, via, now),
            3..=5 => drop(filter.judge_inbound(packet, via, now)),
            6 => {
                filter.replace_rules(Vec::new());
                filter.break_connections(0..usize::MAX, 3, |by, _| by == via, |_| {});
            }
            _ => filter.replace_rules(vec![Rule::all()]),
        }
        filter.assert_sound();
    }
}

/// Of some ports, from the lower half of the prefixes in use.
fn rule() -> Rule {
    let sources = ["100.64.0.0/25", "fd00::/9"].map(|prefix| prefix.parse().expect("a prefix"));
    let services = vec![Service { ports: vec![22..=80], ..Service::any() }];
    Rule { sources: sources.to_vec(), services, ..Rule::all() }
}

fn with_bench(work: impl FnOnce(&mut Bench)) {
    BENCH.with_borrow_mut(|bench| {
        let bench = bench.get_or_insert_with(Bench::new);
        bench.reset();
        work(bench);
        bench.rest();
        bench.worker.handle_command(Command::Remove(bench.peer)).ok();
        assert!(bench.worker.peers.iter().next().is_none(), "a removed peer is still there");
    });
}

struct Bench {
    worker: Worker,
    reader: Reader,
    /// Sends packets, each after an offload header, out of the interface.
    tap: Socket,
    noise: Tunn,
    peer: PublicKey,
}

impl Bench {
    fn new() -> Self {
        // SAFETY: a plain integer in and out; only this thread moves.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(alone, 0, "a network namespace of its own needs root");
        let device = Device::create("hf0", DEFAULT_MTU).expect("an interface needs root");
        let own = [IpAddr::from([100, 64, 0, 1]), "fd00::1".parse().expect("an address")];
        let prefixes = [(own[0], 10), (own[1], 64)];
        let prefixes = prefixes.map(|(ip, bits)| ipnet::IpNet::new(ip, bits).expect("a prefix"));
        device.set_addresses(&prefixes).expect("addresses for a new interface");
        let tap = tap(device.name());
        let reader = Reader::new(device.system(), device.mtu());
        let config = Config {
            private_key: Some(PrivateKey::from(OWN_SECRET)),
            policy: Policy::Owner,
            device,
            listen_port: 0,
            fwmark: None,
            addresses: own.to_vec(),
            message_port: Some(MESSAGE_PORT),
            filter: Some(vec![Rule::all()]),
        };
        let sockets = Sockets::open(0, None).expect("sockets");
        let worker = Worker::new(config, sockets, Arc::new(AtomicU16::new(0)), Box::new(|_| ()));
        let peer = PrivateKey::from(PEER_SECRET).public_key();
        Self { worker, reader, tap, noise: noise(), peer }
    }

    /// As after the start, with one peer that has a session: so that an input finds again what it found.
    fn reset(&mut self) {
        let (worker, now) = (&mut self.worker, Instant::now());
        worker.local = Some(Local::new(PrivateKey::from(OWN_SECRET)));
        worker.revivals.clear();
        (worker.answers, worker.peers, worker.routes) =
            (Answers::default(), Peers::default(), Routes::default());
        (worker.budget, worker.drops) = (Budget::default(), Drops::default());
        (worker.activity, worker.strangers) = (Activity::new(now), Strangers::new(now));
        (worker.now, worker.next_tick_at) = (now, now);
        worker.filter = Some(Filter::new(vec![Rule::all()], now));
        self.noise = noise();
        let allowed: Vec<ipnet::IpNet> = vec![PEER.into(), "fd00::7/128".parse().expect("a prefix")];
        let peer =
            Peer { key: self.peer, allowed_ips: allowed.clone(), sources: allowed, preshared_key: None };
        self.worker.handle_command(Command::Upsert(peer)).ok();
        self.connect();
    }

    /// A handshake begun by the node, whose own messages go nowhere.
    fn connect(&mut self) {
        let endpoints = vec![PEER_ENDPOINT.into()];
        self.worker.handle_command(Command::Initiate { peer: self.peer, endpoints }).ok();
        let initiation = self.say(|noise, out| noise.initiate(out));
        let mut answer = [0; 256];
        let TunnResult::WriteToNetwork(answer) = self.noise.decapsulate(None, &initiation, &mut answer)
        else {
            panic!("the peer does not answer");
        };
        self.arrive(Path::to(PEER_ENDPOINT.into()), answer);
        let keepalive = self.say(|noise, out| noise.seal(&[], out));
        let mut nothing = [0; 256];
        let opened = self.noise.decapsulate(None, &keepalive, &mut nothing);
        assert!(matches!(opened, TunnResult::Done), "the session is one-sided: {opened:?}");
    }

    /// What the node's session with the peer writes.
    fn say(&mut self, write: impl FnOnce(&mut Noise, &mut [u8]) -> Option<usize>) -> Vec<u8> {
        let peers = &mut self.worker.peers;
        let live = peers.find(&self.peer).and_then(|id| peers.get(id)?.live.as_deref_mut());
        let mut out = vec![0; 256];
        let len = live.and_then(|live| write(&mut live.noise, &mut out)).expect("the peer is live");
        out.truncate(len);
        out
    }

    /// As in a turn.
    fn arrive(&mut self, path: Path, datagram: &[u8]) {
        self.worker.handle_datagram(path, None, datagram);
        self.worker.hear_waiting();
    }

    fn hear(&mut self, kind: u8, bytes: &[u8]) {
        let from: SocketAddr = match kind & 0x80 {
            0 => PEER_ENDPOINT.into(),
            _ => ([198, 51, 100, 1], u16::from(kind)).into(),
        };
        let path = Path::to(from);
        match kind % 4 {
            _ if kind & 0x40 != 0 => self.filter(kind, bytes),
            0 => self.arrive(path, bytes),
            1 => self.seal(bytes),
            2 => self.bend(path, bytes),
            _ => {
                let payload = bytes.to_vec();
                let inner =
                    udp_packet(SocketAddr::new(PEER, 9), ([100, 64, 0, 1], MESSAGE_PORT).into(), &payload);
                inner.into_iter().for_each(|inner| self.seal(&inner));
            }
        }
    }

    /// Other rules, or a packet that opens the way for its answers.
    fn filter(&mut self, kind: u8, bytes: &[u8]) {
        let rules = match kind % 4 {
            0 => Vec::new(),
            1 => vec![rule()],
            2 => vec![Rule::all()],
            _ => return self.send(0, bytes),
        };
        self.worker.handle_command(Command::SetRules(rules)).ok();
    }

    /// The peer seals these bytes, whatever they are.
    fn seal(&mut self, inner: &[u8]) {
        let mut sealed = vec![0; inner.len() + 64];
        if let TunnResult::WriteToNetwork(sealed) = self.noise.encapsulate(inner, &mut sealed)
            && sealed.len() <= MAX_DATAGRAM
        {
            self.worker.handle_datagram(Path::to(PEER_ENDPOINT.into()), None, sealed);
        }
    }

    /// The peer begins a handshake anew, of which some bytes are changed.
    fn bend(&mut self, path: Path, changes: &[u8]) {
        let mut buffer = [0; 256];
        let TunnResult::WriteToNetwork(initiation) =
            self.noise.format_handshake_initiation(&mut buffer, true)
        else {
            return;
        };
        let (content, macs) = initiation.split_at_mut(MAC1);
        for change in changes.chunks_exact(2) {
            content[usize::from(change[0]) % MAC1] ^= change[1];
        }
        // Without it nothing behind would ever be reached.
        macs[..16].copy_from_slice(&mac1(content));
        self.worker.handle_datagram(path, None, initiation);
        self.worker.hear_waiting();
    }

    fn send(&mut self, kind: u8, bytes: &[u8]) {
        match kind % 4 {
            // The kernel refuses most.
            0 | 1 => drop(self.tap.send(bytes)),
            2 => {
                let (payload, peer) = (bytes.to_vec(), self.peer);
                self.worker.handle_command(Command::SendMessage { peer, payload, via: None }).ok();
            }
            _ => drop(self.worker.handle_command(Command::Forget { peer: self.peer })),
        }
        // As a wait would tell.
        self.worker.ready.device = true;
        assert!(self.worker.send(&mut self.reader).is_ok(), "the interface is gone");
        self.worker.outbox.flush();
    }

    fn rest(&mut self) {
        self.worker.filter.iter().for_each(Filter::assert_sound);
        self.worker.write();
        self.worker.handle_timers();
        self.worker.outbox.flush();
    }
}

/// As in the WireGuard paper, section 5.4.4.
fn mac1(content: &[u8]) -> [u8; 16] {
    use blake2::{
        Blake2s256, Blake2sMac, Digest,
        digest::{Mac, consts::U16},
    };
    let public = PrivateKey::from(OWN_SECRET).public_key();
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(public.0).finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.chain_update(content).finalize().into_bytes().into()
}

fn noise() -> Tunn {
    let public = PrivateKey::from(OWN_SECRET).public_key();
    Tunn::new(PEER_SECRET.into(), public.0.into(), None, None, 7, None)
}

/// A packet socket on the interface, on which each packet has the kernel's header of offloads before it.
fn tap(interface: &str) -> Socket {
    use std::os::fd::AsRawFd;
    let tap = Socket::new(Domain::PACKET, Type::RAW, None).expect("a packet socket needs root");
    let name = std::ffi::CString::new(interface).expect("a name without zeros");
    let on: libc::c_int = 1;
    // SAFETY: each call reads a value that lives through it, of the size given.
    let (bound, set) = unsafe {
        let mut address = std::mem::zeroed::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let bound = libc::bind(tap.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32);
        let value = (&raw const on).cast();
        let size = size_of_val(&on) as u32;
        (bound, libc::setsockopt(tap.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, value, size))
    };
    assert_eq!((bound, set), (0, 0), "{}", std::io::Error::last_os_error());
    tap
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_seed_is_survived() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        proto::fuzzing::replay(&corpus, super::TARGETS);
    }

    #[test]
    fn packets_of_the_seeds_leave_the_interface() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/packets");
        for seed in std::fs::read_dir(corpus).unwrap() {
            super::packets(&std::fs::read(seed.unwrap().path()).unwrap());
        }
        let sent = super::BENCH.with_borrow(|bench| bench.as_ref().unwrap().worker.counters().traffic);
        assert!(sent.tx_packets > 0, "{sent:?}");
    }
}
