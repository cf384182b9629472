//! A node is removed, under the root's signature.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn its_tunnels_end_everywhere_and_it_learns_why() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { agents: 3, ..Setup::default() }, seed);
        world.flow(0, 2, ms(200));
        world.flow(0, 1, ms(200));
        world.run_for(secs(3));
        world.apply(&Fault::Remove(2));
        let gone = |world: &World| !world.knows(0, 2) && !world.knows(1, 2) && !world.has_tunnel(0, 2);
        let took = world.until("the others forgot it", secs(1), gone);
        world.until("it knows", secs(15), |world| world.is_removed(2));
        assert!(world.has_tunnel(0, 1), "the others' tunnel stays");
        took
    });
    let (_, worst) = measured("removed", waits.collect());
    assert!(worst < ms(100));
}
