//! Which queue of an interface a packet goes to: that of the worker whose peer its destination belongs to. A small program in
//! the kernel (eBPF, TUNSETSTEERINGEBPF) looks the destination up in a copy of the table of routes.
//!
//! Without it the kernel would follow what each queue wrote last, and move a flow to another queue while packets of it
//! wait in the former: they would overtake each other. Layouts are those of linux/bpf.h.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use ipnet::IpNet;

/// Prefixes, tried in order. The table takes memory for those that there are, but kernels before 5.11 count all of them against
/// RLIMIT_MEMLOCK, which is 64 KB or 8 MB. What a full table lacks is handed over.
const MAX_PREFIXES: [u32; 4] = [1 << 18, 1 << 15, 1 << 12, 1 << 9];
/// _IOR('T', 224, int) and _IOW('T', 217, int).
const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0_u32 as libc::Ioctl;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
const IFF_DETACH_QUEUE: libc::c_short = 0x0400;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// A prefix as the kernel's table has it: its bits, IP's version first, so that the families do not meet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    bits: u32,
    version: u8,
    address: [u8; 16],
}

/// What of it counts: what follows only fills it up.
const KEY_BYTES: u32 = 4 + 1 + 16;

impl Key {
    fn new(prefix: IpNet) -> Self {
        let mut key = Self { bits: 8 + u32::from(prefix.prefix_len()), version: 0, address: [0; 16] };
        match prefix.trunc() {
            IpNet::V4(prefix) => {
                key.version = 4;
                key.address[..4].copy_from_slice(&prefix.network().octets());
            }
            IpNet::V6(prefix) => {
                key.version = 6;
                key.address = prefix.network().octets();
            }
        }
        key
    }
}

/// The kernel's table; the program goes with the interface.
#[derive(Debug)]
pub(crate) struct Steering {
    table: OwnedFd,
}

impl Steering {
    /// From now on packets go where the table says, and else to the first queue.
    pub(super) fn attach(interface: RawFd) -> io::Result<Self> {
        let table = create_table()?;
        let steps = program(table.as_raw_fd());
        let program = bpf(
            BPF_PROG_LOAD,
            &ProgramLoad {
                prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
                count: steps.len() as u32,
                steps: steps.as_ptr() as u64,
                license: c"Apache-2.0".as_ptr() as u64,
                log_level: 0,
                log_size: 0,
                log: 0,
            },
        )?;
        // SAFETY: as above. The interface keeps the program.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let mut number = program.as_raw_fd();
        super::link::ioctl(interface, TUNSETSTEERINGEBPF, &raw mut number)?;
        Ok(Self { table })
    }

    pub(crate) fn set(&self, prefix: IpNet, queue: usize) -> io::Result<()> {
        let (key, value) = (Key::new(prefix), queue as u32);
        self.change(BPF_MAP_UPDATE_ELEM, &key, &raw const value as u64)
    }

    /// A prefix that is not there is none.
    pub(crate) fn unset(&self, prefix: IpNet) -> io::Result<()> {
        match self.change(BPF_MAP_DELETE_ELEM, &Key::new(prefix), 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn change(&self, what: libc::c_int, key: &Key, value: u64) -> io::Result<()> {
        let change =
            MapChange { table: self.table.as_raw_fd() as u64, key: &raw const *key as u64, value, flags: 0 };
        bpf(what, &change).map(drop)
    }
}

/// As large as the kernel grants.
fn create_table() -> io::Result<OwnedFd> {
    let mut result = Err(io::ErrorKind::OutOfMemory.into());
    for max_entries in MAX_PREFIXES {
        let arguments = MapCreate {
            map_type: BPF_MAP_TYPE_LPM_TRIE,
            key_size: KEY_BYTES,
            value_size: size_of::<u32>() as u32,
            max_entries,
            map_flags: BPF_F_NO_PREALLOC,
        };
        // SAFETY: the kernel has just made this descriptor, for us.
        result = bpf(BPF_MAP_CREATE, &arguments).map(|table| unsafe { OwnedFd::from_raw_fd(table) });
        match &result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOMEM)) => {}
            Ok(_) | Err(_) => break,
        }
    }
    result
}

/// Nothing is read from this queue any more; it can still be written to.
pub(super) fn detach_queue(queue: RawFd) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_flags = IFF_DETACH_QUEUE;
    super::link::ioctl(queue, TUNSETQUEUE, &raw mut request).map(drop)
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    count: u32,
    steps: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct MapChange {
    table: u64,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_int, arguments: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads a struct of the given size, and what its addresses point to; all of that lives through the
    // call. What it lacks at the end counts as zeros.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *arguments, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// An instruction: code, registers (source above destination), offset, constant.
#[repr(C)]
#[derive(Clone, Copy)]
struct Step(u8, u8, i16, i32);

/// The key is built on the stack: its length, then IP's version and the destination.
fn program(table: RawFd) -> [Step; 37] {
    const LOAD_BYTES: i32 = 26;
    const LOOK_UP: i32 = 1;
    const KEY: i16 = -24;
    const VERSION: i16 = KEY + 4;
    const ADDRESS: i16 = KEY + 5;
    /// Where the program ends without an answer.
    const NOWHERE: i16 = 35;
    let registers = |to: u8, from: u8| from << 4 | to;
    let set = |to, constant| Step(0xb7, to, 0, constant);
    let copy = |to, from| Step(0xbf, registers(to, from), 0, 0);
    let add = |to, constant: i16| Step(0x07, to, 0, constant.into());
    let call = |function| Step(0x85, 0, 0, function);
    let zero_8_bytes = |at| Step(0x7a, 10, at, 0);
    let store_length = |bits| Step(0x62, 10, KEY, bits);
    let go = |from: i16, to: i16| Step(0x05, 0, to - from - 1, 0);
    let if_equal = |register, constant, from: i16, to: i16| Step(0x15, register, to - from - 1, constant);
    let if_not_equal = |register, constant, from: i16, to: i16| Step(0x55, register, to - from - 1, constant);
    [
        copy(6, 1),
        zero_8_bytes(KEY),
        zero_8_bytes(KEY + 8),
        zero_8_bytes(KEY + 16),
        // 4: the packet's first byte, whose upper half is the version.
        set(2, 0),
        copy(3, 10),
        add(3, VERSION),
        set(4, 1),
        call(LOAD_BYTES),
        if_not_equal(0, 0, 9, NOWHERE),
        Step(0x71, registers(7, 10), VERSION, 0),
        Step(0x77, 7, 0, 4),
        Step(0x73, registers(10, 7), VERSION, 0),
        if_equal(7, 4, 13, 19),
        if_not_equal(7, 6, 14, NOWHERE),
        // 15: IPv6's destination is at 24.
        store_length(8 + 128),
        set(2, 24),
        set(4, 16),
        go(18, 22),
        // 19: IPv4's is at 16.
        store_length(8 + 32),
        set(2, 16),
        set(4, 4),
        // 22
        copy(1, 6),
        copy(3, 10),
        add(3, ADDRESS),
        call(LOAD_BYTES),
        if_not_equal(0, 0, 26, NOWHERE),
        // 27: a descriptor, which takes the room of two.
        Step(0x18, registers(1, 1), 0, table),
        Step(0, 0, 0, 0),
        copy(2, 10),
        add(2, KEY),
        call(LOOK_UP),
        if_equal(0, 0, 32, NOWHERE),
        Step(0x61, registers(0, 0), 0, 0),
        Step(0x95, 0, 0, 0),
        // 35: the first queue.
        set(0, 0),
        Step(0x95, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        os::fd::AsFd,
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        device::{Read, Reader, System, Writer},
        packet::udp_packet,
        shard::Workers,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An interface with two queues, in a network of its own.
    fn interface() -> (System, System, Option<Steering>) {
        // SAFETY: takes and returns integers; only this thread moves.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "a network namespace needs root");
        let two = Workers::new(2).unwrap();
        let first = System::create("steer0", 1420, two).unwrap();
        let (mut others, steering) = first.open_queues("steer0", two).unwrap();
        first.bring_up("steer0").unwrap();
        for address in ["10.7.0.1/16", "fd07::1/64"] {
            first.add_address(address.parse().unwrap()).unwrap();
        }
        (first, others.pop().unwrap(), steering)
    }

    /// Which queue a packet to this destination comes to.
    fn queue(queues: [&System; 2], to: &str) -> usize {
        let any = if to.contains('.') { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.send_to(b"x", (to, 7)).unwrap();
        let mut reader = Reader::new(queues[0], 1420);
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            for (number, queue) in queues.into_iter().enumerate() {
                if let Read::Segments(_) = reader.read(queue)
                    && crate::packet::destination(reader.segment(0)) == to.parse().ok()
                {
                    return number;
                }
            }
            assert!(Instant::now() < give_up_at, "nothing for {to}");
            thread::yield_now();
        }
    }

    #[test]
    fn packets_come_to_the_queue_of_the_longest_prefix_and_else_to_the_first() {
        let (first, second, steering) = interface();
        let steering = steering.expect("eBPF needs root");
        let queue = |to| queue([&first, &second], to);
        let routes =
            [("10.7.1.0/24", 1), ("10.7.1.7/32", 0), ("fd07::/96", 1), ("fd07::7/128", 0), ("0.0.0.0/0", 0)];
        for (prefix, number) in routes {
            steering.set(prefix.parse().unwrap(), number).unwrap();
        }
        let expected = [
            ("10.7.1.9", 1),
            ("10.7.1.7", 0),
            ("10.7.2.1", 0),
            ("fd07::9", 1),
            ("fd07::7", 0),
            ("fd07::1:0:9", 0),
        ];
        for (to, number) in expected {
            assert_eq!(queue(to), number, "{to}");
        }
        steering.set("0.0.0.0/0".parse().unwrap(), 1).unwrap();
        steering.unset("10.7.1.7/32".parse().unwrap()).unwrap();
        steering.unset("10.9.9.9/32".parse().unwrap()).unwrap();
        // The wide prefix of one family is nothing to the other.
        for (to, number) in [("10.7.2.1", 1), ("10.7.1.7", 1), ("fd07::1:0:9", 0)] {
            assert_eq!(queue(to), number, "{to}");
        }
    }

    #[test]
    fn a_detached_queue_is_written_to_and_no_flow_follows_what_it_wrote() {
        let (first, second, steering) = interface();
        drop(steering);
        let mut none: libc::c_int = -1;
        super::super::link::ioctl(first.as_fd().as_raw_fd(), TUNSETSTEERINGEBPF, &raw mut none).unwrap();
        detach_queue(second.as_fd().as_raw_fd()).unwrap();
        let socket = UdpSocket::bind("10.7.0.1:9").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut writer = Writer::new(&second, 1);
        for port in 1000..1032 {
            let from = ([10, 7, 1, 1], port).into();
            let packet = udp_packet(from, "10.7.0.1:9".parse().unwrap(), b"hello").unwrap();
            writer.room()[..packet.len()].copy_from_slice(&packet);
            writer.keep(packet.len());
            assert_eq!(writer.flush(&second), 0);
            let mut buffer = [0; 16];
            assert_eq!(socket.recv_from(&mut buffer).unwrap(), (5, from));
            socket.send_to(b"back", from).unwrap();
        }
        let mut reader = Reader::new(&first, 1420);
        let mut read = 0;
        while let Read::Segments(count) = reader.read(&first) {
            read += count;
        }
        assert!(read >= 32, "{read} of 32 answers at the first queue");
        assert!(matches!(reader.read(&second), Read::Empty));
    }
}
