//! Two addresses of the same nodes, of which one cannot serve the one.

use super::*;

const OTHER: &str = "10.9.7.1";
const OTHER_PREFIX: &str = "10.9.7.1/32";

fn two_addresses() -> Setup {
    let mut setup = setup(2);
    setup.claims.extend([FIRST, SECOND].map(|agent| Claimed::new(agent, OTHER_PREFIX)));
    setup
}

#[test]
fn what_one_node_cannot_serve_moves_alone_and_nothing_is_lost() {
    for seed in 0..6 {
        let (mut world, caller) = in_use(&two_addresses(), seed, seed % 2 == 0);
        let other = world.call(0, OTHER, ms(5));
        world.run_for(secs(5));
        let answerers = world.answered_by(other).len();
        world.switches(0);
        let address = ADDRESS.parse().unwrap();
        for fault in [Fault::Unserved(FIRST, address), Fault::ServedAgain(FIRST, address)] {
            world.apply(&fault);
            world.run_for(secs(90));
            let serving = [PREFIX, OTHER_PREFIX].map(|prefix| world.serving(0, prefix));
            assert_eq!(serving, [Some(SECOND), Some(FIRST)], "seed {seed}, {fault:?}");
        }
        assert_eq!((world.switches(0), world.answered_by(other).len()), (1, answerers), "seed {seed}");
        assert_eq!(lost(&mut world, caller) + lost(&mut world, other), 0, "seed {seed}");
    }
}
