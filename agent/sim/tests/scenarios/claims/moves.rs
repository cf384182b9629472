//! What must move nobody: loss, blackouts, the client's own link.

use super::*;

fn under(seed: u64, fault: Fault, span: Duration, interval: Duration) -> u64 {
    let mut world = World::settled(&setup(2), seed);
    world.call(0, ADDRESS, interval);
    world.run_for(secs(4));
    world.switches(0);
    world.apply(&fault);
    world.run_for(span);
    world.switches(0)
}

#[test]
fn loss_for_ten_minutes_under_traffic() {
    for (host, whose) in [(Host::Agent(0), "the client's"), (Host::Agent(FIRST), "the active node's")] {
        for interval in [ms(5), ms(50), ms(500)] {
            for (loss, most) in [(0.01, 0), (0.1, 1)] {
                let seeds = if interval == ms(5) { 0..3 } else { 0..10 };
                let moves: Vec<u64> =
                    seeds.map(|seed| under(seed, Fault::Loss(host, loss), secs(600), interval)).collect();
                eprintln!(
                    "{whose} link loses {loss} each way, a request every {interval:?}: {moves:?} moves"
                );
                assert!(moves.iter().all(|moves| *moves <= most));
            }
        }
    }
}

#[test]
fn a_blackout_of_300_ms_every_5_s() {
    for host in [Host::Agent(0), Host::Agent(FIRST)] {
        for seed in 0..10 {
            let (mut world, _) = in_use(&setup(2), seed, seed % 2 == 0);
            for _ in 0..30 {
                world.apply(&Fault::Cut(host));
                world.run_for(ms(300));
                world.apply(&Fault::Heal(host));
                world.run_for(ms(4700));
            }
            assert_eq!(world.switches(0), 0, "seed {seed}, {host:?}");
        }
    }
}

#[test]
fn the_clients_own_link_is_cut_for_3_s() {
    for seed in 0..50 {
        let fault: fn(Host) -> Fault = [Fault::Cut, Fault::DropIn, Fault::DropOut][seed as usize % 3];
        let (mut world, caller) = in_use(&setup(2), seed, seed % 2 == 0);
        world.apply(&fault(Host::Agent(0)));
        world.run_for(secs(3));
        world.apply(&Fault::Heal(Host::Agent(0)));
        world.run_for(secs(2));
        // Less what was under way.
        let outage = world.outage(caller);
        assert!(outage >= ms(2950), "seed {seed}: {outage:?}");
        world.run_for(secs(60));
        assert_eq!(world.switches(0), 0, "seed {seed}");
        assert!(world.outage(caller) < ms(100), "seed {seed}: it is back at once");
    }
}

#[test]
fn a_way_back_that_is_slower_than_the_way_there() {
    for seed in 0..10 {
        let mut world = World::settled(&setup(2), seed);
        world.apply(&Fault::LatencyOut(Host::Agent(FIRST), ms(150)));
        let caller = world.call(0, ADDRESS, ms(5));
        world.run_for(secs(5));
        world.switches(0);
        world.run_for(secs(60));
        assert_eq!((world.switches(0), world.serving(0, PREFIX)), (0, Some(FIRST)), "seed {seed}");
        assert_eq!(lost(&mut world, caller), 0, "seed {seed}");
    }
}

#[test]
fn wall_clocks_that_jump_by_hours_move_nobody_and_lose_nothing() {
    for seed in 0..5 {
        let (mut world, caller) = in_use(&setup(2), seed, seed % 2 == 0);
        for ahead_s in [7200, -7200, 86_400, -86_400, 0] {
            // Each at another time than the others, so that they differ meanwhile.
            for agent in [FIRST, 0, SECOND] {
                world.apply(&Fault::WallClock(agent, ahead_s));
                world.run_for(secs(70));
            }
        }
        assert_eq!((world.switches(0), world.serving(0, PREFIX)), (0, Some(FIRST)), "seed {seed}");
        assert_eq!(lost(&mut world, caller), 0, "seed {seed}");
    }
}
