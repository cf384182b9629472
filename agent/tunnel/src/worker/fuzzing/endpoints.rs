//! Endpoints that are none: nobody is followed to them, and nothing is sent there.

use std::net::SocketAddr;

use super::{Bench, PEER, PEER_ENDPOINT};
use crate::{Command, packet::udp_packet, socket::Path};

const NOWHERE: [&str; 5] =
    ["192.0.2.7:0", "[2001:db8::7]:0", "224.0.0.1:51820", "255.255.255.255:51820", "[ff02::1]:51820"];
const ELSEWHERE: ([u8; 4], u16) = ([192, 0, 2, 8], 51820);

impl Bench {
    fn endpoint(&mut self) -> Option<SocketAddr> {
        let peers = &mut self.worker.peers;
        peers.find(&self.peer).and_then(|id| peers.get(id)?.path).map(|path| path.to)
    }

    fn hear_data(&mut self, from: SocketAddr) {
        let inner = udp_packet((PEER, 9).into(), ([100, 64, 0, 1], 9).into(), b"moved").unwrap();
        let mut buffer = [0; 256];
        let boringtun::noise::TunnResult::WriteToNetwork(sealed) =
            self.noise.encapsulate(&inner, &mut buffer)
        else {
            panic!("there is a session");
        };
        let sealed = sealed.to_vec();
        self.worker.handle_datagram(Path::to(from), None, &sealed);
    }
}

#[test]
fn a_peer_is_followed_to_where_it_can_be_sent_to_and_not_to_port_0_or_to_everybody() {
    let mut bench = Bench::new();
    bench.reset();
    for from in NOWHERE {
        bench.hear_data(from.parse().unwrap());
        assert_eq!(bench.endpoint(), Some(PEER_ENDPOINT.into()), "followed to {from}");
    }
    assert_eq!(bench.worker.drops.bad_endpoint, NOWHERE.len() as u64);
    bench.hear_data(ELSEWHERE.into());
    assert_eq!(bench.endpoint(), Some(ELSEWHERE.into()));
}

#[test]
fn an_initiation_from_port_0_is_not_answered() {
    let mut bench = Bench::new();
    bench.reset();
    let path = Path::to(([192, 0, 2, 7], 0).into());
    // There is no way to anywhere in this namespace: what is sent is refused.
    let refused = bench.worker.outbox.refused;
    bench.bend(path, &[]);
    assert_eq!((bench.worker.drops.bad_endpoint, bench.worker.outbox.refused), (1, refused));
    bench.bend(Path::to(ELSEWHERE.into()), &[]);
    assert_eq!((bench.worker.drops.bad_endpoint, bench.worker.outbox.refused), (1, refused + 1));
}

#[test]
fn an_owners_endpoints_that_are_none_are_counted_and_the_others_serve() {
    let mut bench = Bench::new();
    bench.reset();
    let peer = bench.peer;
    for endpoint in NOWHERE.map(|endpoint| endpoint.parse().unwrap()) {
        bench.worker.handle_command(Command::SetEndpoint { peer, endpoint }).ok();
        let via = Some(endpoint);
        bench.worker.handle_command(Command::SendMessage { peer, payload: vec![1], via }).ok();
        let endpoints = vec![endpoint, ELSEWHERE.into()];
        bench.worker.handle_command(Command::Initiate { peer, endpoints }).ok();
        let peers = &mut bench.worker.peers;
        let live = peers.find(&peer).and_then(|id| peers.get(id)?.live.as_deref()).unwrap();
        assert_eq!(live.trying, [ELSEWHERE.into()]);
    }
    assert_eq!(bench.endpoint(), Some(PEER_ENDPOINT.into()));
    assert_eq!(bench.worker.drops.bad_endpoint, 3 * NOWHERE.len() as u64);
}
