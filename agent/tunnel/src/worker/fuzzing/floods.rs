//! What strangers send in masses takes nothing from a peer.

use super::{Bench, PEER_ENDPOINT};
use crate::socket::Path;

const STRANGER: ([u8; 4], u16) = ([198, 51, 100, 1], 4500);
/// More than may be put by.
const FLOOD: u64 = 10_000;

#[test]
fn handshakes_of_strangers_without_our_key_take_no_turn_and_no_place_from_a_peers() {
    let mut bench = Bench::new();
    bench.reset();
    bench.worker.handshakes.begin_turn();
    let (mut initiation, mut response) = ([0; 148], [0; 92]);
    (initiation[0], response[0]) = (1, 2);
    for _ in 0..FLOOD {
        bench.worker.handle_datagram(Path::to(STRANGER.into()), None, &initiation);
        bench.worker.handle_datagram(Path::to(STRANGER.into()), None, &response);
    }
    let drops = bench.worker.drops;
    assert_eq!((drops.bad_mac, drops.unknown_index, drops.under_load), (FLOOD, FLOOD, 0));
    assert!(!bench.worker.handshakes.is_waiting());
    bench.bend(Path::to(PEER_ENDPOINT.into()), &[]);
    let peers = &mut bench.worker.peers;
    let live = peers.find(&bench.peer).and_then(|id| peers.get(id)?.live.as_deref()).unwrap();
    assert!(live.answered.is_some(), "in the same turn");
}
