//! A network of two namespaces for tests and the benchmark:
//!
//! ```text
//!   namespace left                          namespace right
//!   hf0  100.64.0.1/10                      hf0  100.64.0.2/10
//!   tunnel ── 10.9.0.1/24 wire ── veth ── wire 10.9.0.2/24 ── tunnel
//! ```
//!
//! A namespace is a thread that has its own; everything goes when it is dropped. Needs root (or a user namespace
//! with TUN); without, it panics and says so.

// Shared by several programs, each of which uses a part; helpers panic as tests do.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_tunnel::{
    Config, DEFAULT_MTU, Device, Event, Peer, Policy, PrivateKey, PublicKey, Rule, Tunnel, WantedWorkers,
    Workers, start,
};

/// Longer than anything awaited here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const MESSAGE_PORT: u16 = 7444;

pub mod stranger;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread in it.
pub struct Netns {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Netns {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            // SAFETY: both calls take and return plain integers.
            let result = unsafe {
                if libc::unshare(libc::CLONE_NEWNET) == 0 {
                    Ok(libc::gettid())
                } else {
                    Err(io::Error::last_os_error())
                }
            };
            ready.send(result).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        let tid = started.recv().unwrap().expect("a network namespace needs root (CAP_SYS_ADMIN)");
        let netns = Self { jobs: Some(jobs), thread: Some(thread), tid };
        netns.shell("ip link set lo up");
        netns
    }

    /// Runs something in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job = Box::new(move || {
            let _ = reply.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answer.recv().expect("the job in the namespace panicked")
    }

    pub fn output(&self, command: &str) -> Output {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        self.run(move || Command::new(&words[0]).args(&words[1..]).output().unwrap())
    }

    /// Runs a command that must succeed; its output.
    pub fn shell(&self, command: &str) -> String {
        let output = self.output(command);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn spawn(&self, command: &str) -> std::process::Child {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        self.run(move || Command::new(&words[0]).args(&words[1..]).stdout(Stdio::null()).spawn().unwrap())
    }

    /// UDP datagrams sent over IPv4 so far. Unlike an interface's counters, these leave out the kernel's own talk.
    pub fn datagrams_sent(&self) -> u64 {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let lines: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("Udp: ")).collect();
        let column = lines[0].split(' ').position(|name| name == "OutDatagrams").unwrap();
        lines[1].split(' ').nth(column).unwrap().parse().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// Two namespaces with a wire between them.
pub struct Wire {
    pub left: Netns,
    pub right: Netns,
}

impl Wire {
    pub fn new() -> Self {
        let (left, right) = (Netns::new(), Netns::new());
        left.shell(&format!("ip link add wire type veth peer name wire netns {}", right.tid));
        for (netns, address) in [(&left, "10.9.0.1/24"), (&right, "10.9.0.2/24")] {
            // Without link-local addresses the kernels say nothing of their own.
            netns.shell("ip link set wire addrgenmode none");
            netns.shell(&format!("ip address add {address} dev wire"));
            netns.shell("ip link set wire up");
        }
        Self { left, right }
    }
}

/// A running tunnel with its events.
pub struct Node {
    pub tunnel: Tunnel,
    pub events: Receiver<Event>,
    pub key: PublicKey,
}

/// How many workers a tunnel has here: the tests of other files run again in `two_workers`.
pub fn workers() -> Workers {
    match env!("CARGO_CRATE_NAME").starts_with("two_workers") {
        true => Workers::new(2).unwrap(),
        false => Workers::ONE,
    }
}

/// What is different about the two sides.
pub fn key(number: u8) -> PrivateKey {
    PrivateKey::from(secret(number))
}

/// Of a node that belongs to its peers' last worker: with several, the first admits its handshakes for another.
pub fn secret(number: u8) -> [u8; 32] {
    let workers = workers();
    let secrets = (0..=u8::MAX).map(|salt| {
        let mut secret = [number; 32];
        secret[0] ^= salt;
        secret
    });
    let is_lasts =
        |secret: &[u8; 32]| workers.owner(&PrivateKey::from(*secret).public_key()) + 1 == workers.count();
    secrets.into_iter().find(is_lasts).unwrap()
}

pub fn overlay(number: u8) -> IpAddr {
    [100, 64, 0, number].into()
}

pub fn peer(number: u8) -> Peer {
    let own = overlay(number).into();
    Peer { key: key(number).public_key(), allowed_ips: vec![own], sources: vec![own], preshared_key: None }
}

impl Node {
    pub fn start(netns: &Netns, number: u8, port: u16) -> Self {
        Self::start_filtered(netns, number, port, None)
    }

    pub fn start_filtered(netns: &Netns, number: u8, port: u16, filter: Option<Vec<Rule>>) -> Self {
        let (sender, events) = mpsc::channel();
        let tunnel = netns.run(move || {
            let device = Device::create_for(WantedWorkers::Exactly(workers()), "hf0", DEFAULT_MTU).unwrap();
            device.set_addresses(&[format!("{}/10", overlay(number)).parse().unwrap()]).unwrap();
            let config = Config {
                private_key: Some(key(number)),
                policy: Policy::Owner,
                device,
                listen_port: port,
                fwmark: None,
                addresses: vec![overlay(number)],
                message_port: Some(MESSAGE_PORT),
                filter,
            };
            start(config, move |event| drop(sender.send(event))).unwrap()
        });
        Self { tunnel, events, key: key(number).public_key() }
    }

    /// The first event that is looked for; others before it are passed over.
    pub fn wait_for<T>(&self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if let Some(found) = wanted(&event) {
                return found;
            }
            seen.push(event);
        }
        panic!("no {what}; instead {seen:?}, drops {:?}", self.tunnel.drops());
    }

    pub fn wait_for_packet_waiting(&self) -> PublicKey {
        self.wait_for("PacketWaiting", |event| match event {
            Event::PacketWaiting { peer } => Some(*peer),
            _ => None,
        })
    }

    pub fn wait_for_handshake(&self) -> (PublicKey, SocketAddr, bool) {
        self.wait_for("HandshakeDone", |event| match event {
            Event::HandshakeDone { peer, endpoint, initiator } => Some((*peer, *endpoint, *initiator)),
            _ => None,
        })
    }
}

/// From now on, as in a kernel that does not know it, this thread and its children are refused a system call, or the one
/// whose second argument is this.
pub fn refuse(call: libc::c_long, argument: Option<u32>, error: i32) {
    let bpf = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equals) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ);
    let is_refused = bpf(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32);
    let is_allowed = bpf(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW);
    // The call's number is at 0, its second argument at 24.
    let mut filter = match argument {
        Some(argument) => vec![
            bpf(load, 0, 0, 0),
            bpf(equals, 0, 3, call as u32),
            bpf(load, 0, 0, 24),
            bpf(equals, 0, 1, argument),
            is_refused,
            is_allowed,
        ],
        None => vec![bpf(load, 0, 0, 0), bpf(equals, 0, 1, call as u32), is_refused, is_allowed],
    };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions live through the call.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(refused, 0, "{}", io::Error::last_os_error());
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::yield_now();
    }
}

/// Two tunnels that know each other: number 1 on the left at port 1001, number 2 on the right at 1002.
pub struct Pair {
    pub left: Node,
    pub right: Node,
    pub wire: Wire,
}

pub const RIGHT: ([u8; 4], u16) = ([10, 9, 0, 2], 1002);

impl Pair {
    pub fn new() -> Self {
        Self::guarded(None)
    }

    /// What the left may open on the right.
    pub fn guarded(right: Option<Vec<Rule>>) -> Self {
        Self::filtered(None, right)
    }

    /// What the right may open on the left.
    pub fn guarded_left(left: Vec<Rule>) -> Self {
        Self::filtered(Some(left), None)
    }

    fn filtered(left: Option<Vec<Rule>>, right: Option<Vec<Rule>>) -> Self {
        let wire = Wire::new();
        let left = Node::start_filtered(&wire.left, 1, 1001, left);
        let right = Node::start_filtered(&wire.right, 2, 1002, right);
        left.tunnel.command(agent_tunnel::Command::Upsert(peer(2)));
        right.tunnel.command(agent_tunnel::Command::Upsert(peer(1)));
        Self { left, right, wire }
    }

    /// With a session, begun by the left.
    pub fn connected() -> Self {
        let pair = Self::new();
        pair.connect();
        pair
    }

    pub fn connect(&self) {
        let endpoints = vec![RIGHT.into()];
        self.left.tunnel.command(agent_tunnel::Command::Initiate { peer: self.right.key, endpoints });
        assert_eq!(self.left.wait_for_handshake(), (self.right.key, RIGHT.into(), true));
        let (peer, _, initiator) = self.right.wait_for_handshake();
        assert_eq!((peer, initiator), (self.left.key, false));
    }

    /// Pings from the left, one every 5 ms; every packet must cross, both ways. The tunnels' own counters tell: ping
    /// itself calls lost what comes later than two round trips, as it does on a busy machine.
    pub fn ping(&self, address: &str, count: u64, size: usize) {
        let traffic = |node: &Node| {
            let stats = &node.tunnel.stats()[0];
            (stats.rx_bytes, stats.tx_bytes)
        };
        let (_, before) = traffic(&self.left);
        self.wire.left.output(&format!("ping -q -c {count} -i 0.005 -s {size} {address}"));
        wait_until(&format!("{count} pings of {size} bytes cross"), || {
            let ((rx, tx), right) = (traffic(&self.left), traffic(&self.right));
            tx >= before + count * size as u64 && rx == tx && right == (tx, rx)
        });
    }
}

/// With its far end, accepted by `listener`.
pub fn dial(netns: &Netns, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().unwrap();
    let stream = netns.run(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
    let accepted = listener.accept().unwrap().0;
    [&stream, &accepted].into_iter().for_each(|end| end.set_read_timeout(Some(PATIENCE)).unwrap());
    (stream, accepted)
}

/// On one address of a namespace.
pub fn listen(netns: &Netns, address: IpAddr, port: u16) -> TcpListener {
    netns.run(move || TcpListener::bind((address, port)).unwrap())
}

/// A word gets through.
pub fn carries(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"word").unwrap();
    let mut bytes = [0; 4];
    to.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"word");
}
