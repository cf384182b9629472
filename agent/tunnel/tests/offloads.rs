//! Tunnels where the kernel does less: interfaces without offloads, links narrower than the tunnel, other MTUs meanwhile.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use agent_tunnel::Command;
use support::{Node, Pair, RIGHT, Wire, peer};

/// From now on, as in a kernel that does not know it, this thread and its children are refused TUNSETOFFLOAD.
fn refuse_offloads() {
    const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    let bpf = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equals) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ);
    let mut filter = [
        // The call's number; then its second argument.
        bpf(load, 0, 0, 0),
        bpf(equals, 0, 3, libc::SYS_ioctl as u32),
        bpf(load, 0, 0, 24),
        bpf(equals, 0, 1, TUNSETOFFLOAD),
        bpf(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        bpf(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions live through the call.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
}

fn carries_pings(pair: &Pair, size: usize) {
    let said = pair.wire.left.shell(&format!("ping -q -c 10 -i 0.01 -W 20 -s {size} 100.64.0.2"));
    assert!(said.contains(" 0% packet loss"), "{said}");
}

fn carries_tcp(pair: &Pair) {
    let mut server = pair.wire.right.spawn("iperf3 -s -1 -B 100.64.0.2");
    support::wait_until("iperf3 listens", || {
        pair.wire.right.shell("ss -Hltn sport = :5201").contains("5201")
    });
    let said = pair.wire.left.shell("iperf3 -c 100.64.0.2 -n 20M -f m");
    let _ = server.wait();
    assert!(said.contains("receiver"), "{said}");
    let drops = [pair.left.tunnel.drops(), pair.right.tunnel.drops()];
    assert!(
        drops.iter().all(|drops| drops.write_failed + drops.send_failed + drops.malformed == 0),
        "{drops:?}"
    );
}

#[test]
fn an_interface_without_offloads_carries_everything() {
    let wire = Wire::new();
    wire.left.run(refuse_offloads);
    let (left, right) = (Node::start(&wire.left, 1, 1001), Node::start(&wire.right, 2, 1002));
    left.tunnel.command(Command::Upsert(peer(2)));
    right.tunnel.command(Command::Upsert(peer(1)));
    let pair = Pair { left, right, wire };
    pair.connect();
    carries_pings(&pair, 1300);
    carries_tcp(&pair);
}

#[test]
fn a_link_that_becomes_narrower_than_the_tunnel_costs_no_packet() {
    let pair = Pair::connected();
    carries_pings(&pair, 1300);
    for mtu in [1280, 600] {
        for side in [&pair.wire.left, &pair.wire.right] {
            side.shell(&format!("ip link set wire mtu {mtu}"));
        }
        carries_pings(&pair, 1300);
        carries_tcp(&pair);
    }
    assert_eq!(pair.left.tunnel.stats()[0].endpoint, Some(RIGHT.into()));
}

#[test]
fn the_interfaces_mtu_changes_under_traffic() {
    let pair = Pair::connected();
    for mtu in [9000, 576, 65_000, 1420] {
        for side in [&pair.wire.left, &pair.wire.right] {
            side.shell(&format!("ip link set hf0 mtu {mtu}"));
        }
        carries_pings(&pair, mtu - 28);
        carries_tcp(&pair);
    }
}
