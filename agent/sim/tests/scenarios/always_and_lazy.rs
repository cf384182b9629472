//! Peers that are kept, and those that are not.

use crate::secs;
use agent_core::config::PeerMode;
use agent_sim::{Setup, World};

#[test]
fn a_peer_made_always_connects_without_traffic_stays_and_goes_idle_when_made_lazy() {
    for seed in 0..10 {
        let mut world = World::settled(&Setup::default(), seed);
        assert!(!world.has_tunnel(0, 1));
        world.set_peer_mode(0, PeerMode::Always);
        world.until("the tunnel is up", secs(1), |world| world.has_tunnel(0, 1) && world.has_tunnel(1, 0));
        world.run_for(secs(1000));
        assert!(world.has_tunnel(0, 1), "kept without data");
        world.set_peer_mode(0, PeerMode::Lazy);
        world.run_for(secs(10));
        assert!(world.has_tunnel(0, 1), "it goes by its idle timer, not at once");
        // The idle timeout, and the life of a session that the other side may still use.
        world.run_for(secs(300 + 180));
        assert!(!world.has_tunnel(0, 1));
    }
}
