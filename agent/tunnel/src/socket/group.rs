//! Sockets of several workers on one port (SO_REUSEPORT), and the program that gives each datagram to the worker whose
//! session it names. The kernel numbers a group's sockets as they are bound, and anew when one is closed: so all are made
//! at once.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::SockRef;

use super::{
    Family, Socket, Sockets, optional,
    ports::{any_port, same_port},
};
use crate::{StartError, shard::Workers};

impl Sockets {
    /// As [`Sockets::open`], for each worker.
    pub(crate) fn open_group(
        port: u16,
        fwmark: Option<u32>,
        workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        any_port(port, |port| Self::bind_group(port, fwmark, workers))
    }

    /// As [`Sockets::rebind`], for each worker.
    pub(crate) fn rebind_group(
        port: u16,
        fwmark: Option<u32>,
        workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        match port {
            0 => Self::open_group(0, fwmark, workers),
            _ => Self::bind_group(port, fwmark, workers),
        }
    }

    /// As [`Sockets::renew`], for each worker. The former ones are closed.
    pub(crate) fn renew_group(
        port: u16,
        fwmark: Option<u32>,
        workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        match same_port(port, |port| Self::bind_group(port, fwmark, workers))? {
            Some(renewed) => Ok(renewed),
            None => Self::open_group(0, fwmark, workers),
        }
    }

    /// Closes the sockets; nothing is sent or received until others are there.
    pub(crate) fn close(&mut self) {
        (self.v4, self.v6) = (None, None);
    }

    fn bind_group(port: u16, fwmark: Option<u32>, workers: Workers) -> Result<Vec<Self>, StartError> {
        // The first has the port to itself: else we would join a group of another program.
        let first = Self::bind(port, fwmark)?;
        first.share().map_err(StartError::Socket)?;
        let port = first.port;
        let mut group = vec![first];
        for _ in 1..workers.count() {
            group.push(Self::bind_beside(port, fwmark)?);
        }
        if workers != Workers::ONE
            && let Err(error) = group[0].dispatch(workers)
        {
            tracing::info!(%error, "the kernel does not tell workers' datagrams apart; they do it themselves");
        }
        Ok(group)
    }

    fn bind_beside(port: u16, fwmark: Option<u32>) -> Result<Self, StartError> {
        let v4 = optional(Socket::bind_beside((Ipv4Addr::UNSPECIFIED, port).into(), fwmark))?;
        let v6 = optional(Socket::bind_beside((Ipv6Addr::UNSPECIFIED, port).into(), fwmark))?;
        Ok(Self { v4, v6, port, gone: Vec::new() })
    }

    fn both(&self) -> impl Iterator<Item = &Socket> {
        [Family::V4, Family::V6].into_iter().filter_map(|family| self.socket(family))
    }

    /// From now on others of this program may have the same port.
    fn share(&self) -> io::Result<()> {
        self.both().try_for_each(|socket| SockRef::from(&socket.socket).set_reuse_port(true))
    }

    fn dispatch(&self, workers: Workers) -> io::Result<()> {
        let program = program(workers);
        self.both().try_for_each(|socket| attach(&socket.socket, &program))
    }
}

impl Socket {
    fn bind_beside(address: SocketAddr, fwmark: Option<u32>) -> Result<Self, StartError> {
        let socket = Self::open(address).map_err(StartError::Socket)?;
        socket.set_reuse_port(true).map_err(StartError::Socket)?;
        Self::bind_opened(socket, address, fwmark)
    }
}

/// Classic BPF over a UDP payload: the number of the socket. Data and cookies (types 4 and 3) have the receiver's index at 4,
/// responses (2) at 8, little endian; above the library's byte is the one that names the worker. Initiations, and what is
/// nothing or too short, go to the first.
fn program(workers: Workers) -> [libc::sock_filter; 10] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const RETURN_RESULT: u32 = libc::BPF_RET | libc::BPF_A;
    let step = |code: u32, jt, k| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    [
        step(LOAD_BYTE, 0, 0),
        step(IF_EQUAL, 3, 4),
        step(IF_EQUAL, 2, 3),
        step(IF_EQUAL, 3, 2),
        step(RETURN, 0, 0),
        step(LOAD_BYTE, 0, 5),
        step(JUMP, 0, 1),
        step(LOAD_BYTE, 0, 9),
        step(MODULO, 0, workers.count() as u32),
        step(RETURN_RESULT, 0, 0),
    ]
}

fn attach(socket: &std::net::UdpSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives through the call; the size is that of its head.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Instant};

    use super::*;
    use crate::{
        shard::Shard,
        socket::{Arena, Path, Received, tests::PATIENCE},
    };

    const THREE: u8 = 3;

    fn group() -> (Workers, Vec<Sockets>) {
        let workers = Workers::new(THREE).unwrap();
        (workers, Sockets::open_group(0, None, workers).unwrap())
    }

    /// Who gets it. Nothing else is on its way.
    fn receiver(group: &[Sockets], family: Family, datagram: &[u8]) -> usize {
        let address: SocketAddr = match family {
            Family::V4 => ([127, 0, 0, 1], group[0].port()).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, group[0].port()).into(),
        };
        let any: SocketAddr = match family {
            Family::V4 => (Ipv4Addr::LOCALHOST, 0).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        UdpSocket::bind(any).unwrap().send_to(datagram, address).unwrap();
        let mut arena = Arena::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nobody got it within {PATIENCE:?}");
            let taken = group
                .iter()
                .position(|sockets| arena.receive(sockets.socket(family).unwrap()) != Received::Nothing);
            if let Some(number) = taken {
                let got: Vec<_> = arena.datagrams().map(|(_, _, bytes)| bytes.to_vec()).collect();
                assert_eq!(got, [datagram]);
                return number;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn each_datagram_goes_to_the_worker_whose_index_it_bears() {
        let (workers, group) = group();
        for family in [Family::V4, Family::V6] {
            for session in [0u32, 0x100, 0x2ff, 0xabcd_ef12, u32::MAX, 0xffff_01ff] {
                let owner = Shard::all(workers).next().unwrap().session_owner(session);
                for (kind, len, at) in [(4u8, 32, 4), (4, 1452, 4), (3, 64, 4), (2, 92, 8)] {
                    let mut datagram = vec![0xee; len];
                    datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                    datagram[at..at + 4].copy_from_slice(&session.to_le_bytes());
                    assert_eq!(receiver(&group, family, &datagram), owner, "type {kind}, index {session:x}");
                }
            }
        }
    }

    #[test]
    fn initiations_and_what_is_nothing_go_to_the_first() {
        let (_, group) = group();
        let mut initiation = [0xff; 148];
        initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
        for datagram in [&initiation[..], &[4], &[4, 0, 0, 0, 9], &[2, 0, 0, 0, 0, 0, 0, 0, 1], b"hello, all"]
        {
            assert_eq!(receiver(&group, Family::V4, datagram), 0, "{datagram:?}");
        }
    }

    #[test]
    fn a_renewed_group_keeps_port_and_order_and_nobody_joins_it_by_opening() {
        let (workers, mut group) = group();
        let port = group[0].port();
        group.iter_mut().for_each(Sockets::close);
        let group = Sockets::renew_group(port, None, workers).unwrap();
        assert!(group.iter().all(|sockets| sockets.port() == port));
        let other = Sockets::open_group(port, None, workers).unwrap();
        assert_ne!(other[0].port(), port);
        for session in [0u32, 0x100, 0x200] {
            let mut datagram = [4; 32];
            datagram[1..4].fill(0);
            datagram[4..8].copy_from_slice(&session.to_le_bytes());
            assert_eq!(receiver(&group, Family::V4, &datagram), (session >> 8) as usize);
        }
    }

    #[test]
    fn whoever_of_a_group_sends_has_the_groups_port() {
        let (_, mut group) = group();
        let to = Sockets::open(0, None).unwrap();
        let port = group[0].port();
        let mut arena = Arena::new();
        for sockets in &mut group {
            let path = Path::to(([127, 0, 0, 1], to.port()).into());
            assert_eq!(sockets.send(path, crate::socket::Datagrams::one(b"x")), 0);
            arena.await_from(&to, Family::V4);
            assert_eq!(arena.datagrams().next().unwrap().0.to.port(), port);
        }
    }
}
