//! Rules that change while agents talk.

use crate::{SEEDS, ms, secs};
use agent_sim::{Fault, Policy, Setup, World};

#[test]
fn who_is_allowed_no_more_is_cut_off_within_a_second_and_let_in_again_likewise() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        let (to, back) = (world.flow(0, 1, ms(100)), world.flow(1, 0, ms(100)));
        world.run_for(secs(3));
        for policy in [Policy::Named(0b10), Policy::InSet(0b10)] {
            world.apply(&Fault::Rules(policy));
            world.run_for(secs(1));
            let before = world.traffic(to).1;
            let others = world.traffic(back).1;
            world.run_for(secs(5));
            assert_eq!(world.traffic(to).1, before, "seed {seed}: {policy:?} lets nobody else in");
            assert!(world.traffic(back).1 >= others + 49, "seed {seed}: answers come in");
            world.apply(&Fault::Rules(Policy::InSet(0b11)));
            world.run_for(secs(1));
            let before = world.traffic(to).1;
            world.run_for(secs(1));
            assert!(world.traffic(to).1 >= before + 9, "seed {seed}: it is let in again");
        }
    }
}

#[test]
fn rules_that_say_the_same_otherwise_end_nothing() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(5));
        world.run_for(secs(2));
        for policy in [Policy::InSet(0b11), Policy::Named(0b11), Policy::Network, Policy::InSet(0b01)] {
            world.apply(&Fault::Rules(policy));
            world.run_for(secs(1));
        }
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!(sent, answered, "seed {seed}: requests were lost");
    }
}

#[test]
fn an_agent_that_was_away_goes_by_the_rules_it_kept_until_a_server_tells_others() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { servers: 1, ..Setup::default() }, seed);
        let flow = world.flow(0, 1, ms(100));
        world.run_for(secs(2));
        world.apply(&Fault::Stop(1));
        world.apply(&Fault::Rules(Policy::Named(0b10)));
        world.run_for(secs(1));
        world.apply(&Fault::CutOff(0));
        world.apply(&Fault::Cut(agent_sim::Host::Server(0)));
        world.apply(&Fault::Launch(1));
        let before = world.traffic(flow).1;
        world.run_for(secs(20));
        assert!(world.traffic(flow).1 > before, "seed {seed}: what was allowed is, without servers");
        world.heal();
        world.run_for(secs(20));
        let before = world.traffic(flow).1;
        world.run_for(secs(5));
        assert_eq!(world.traffic(flow).1, before, "seed {seed}: the server told the newest rules");
    }
}
