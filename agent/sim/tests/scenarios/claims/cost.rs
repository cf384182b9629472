//! What clients spend on those that they do not use at the moment.

use super::*;

#[test]
fn a_client_that_uses_nothing_asks_nobody_and_one_in_use_asks_its_node_every_375_ms_and_the_standby_every_25_s()
 {
    let (mut world, caller) = in_use(&setup(10), 1, true);
    let before = world.messages(0);
    world.run_for(secs(100));
    let in_use = world.messages(0) - before;
    world.set_caller(caller, false);
    world.run_for(secs(400));
    let before = world.messages(0);
    world.run_for(secs(3600));
    let idle = world.messages(0) - before;
    eprintln!("messages of a client of ten: {in_use} in 100 s in use, {idle} in an hour without use");
    assert!(in_use <= 280 && idle == 0);
}

#[test]
fn data_that_is_never_answered_costs_a_probe_per_silence_and_neither_handshakes_nor_signals() {
    for round_trip in [ms(2), ms(40), ms(200)] {
        let mut world = World::settled(&setup(2), 1);
        set_round_trip(&mut world, 4, round_trip);
        let caller = world.tell(0, ADDRESS, ms(20));
        world.run_for(secs(10));
        let (before, messages) = (world.wakings(0), world.messages(0));
        world.run_for(secs(60));
        let (initiations, signals) = world.wakings(0);
        let (initiations, signals) = (initiations - before.0, signals - before.1);
        let messages = world.messages(0) - messages;
        eprintln!(
            "60 s of data without answers, round trip {round_trip:?}: {initiations} handshakes, {signals} signals, {messages} messages"
        );
        // After a silence of 150 ms or two round trips the active node is asked until its answer is there, and so is the standby.
        let silences = secs(60).as_millis() / (ms(150).max(round_trip * 2) + round_trip).as_millis();
        let asked = 1 + round_trip.as_millis() / 50;
        assert!(initiations <= 1 && signals <= 1, "round trip {round_trip:?}");
        assert!(u128::from(messages) <= silences * asked * 2 + 40, "round trip {round_trip:?}");
        assert_eq!(world.switches(0), 0, "round trip {round_trip:?}");
        assert!(world.outage(caller) < secs(1), "round trip {round_trip:?}");
    }
}

#[test]
fn of_a_client_that_uses_nothing_any_more_every_tunnel_is_let_go_the_standbys_too() {
    // The prefix is idle, then the tunnels are; and the last session is over.
    let bound = secs(300) + secs(300) + secs(180);
    for seed in 0..5 {
        let (mut world, caller) = in_use(&setup(2), seed, seed % 2 == 0);
        // The standby's tunnel lives by probes alone.
        world.run_for(secs(900));
        world.set_caller(caller, false);
        let claimers = [FIRST, SECOND];
        assert!(claimers.iter().all(|claimer| world.has_tunnel(0, *claimer)), "seed {seed}");
        let waited = world.until("no tunnel is left at either end", bound, |world| {
            !claimers.iter().any(|one| world.has_tunnel(0, *one) || world.has_tunnel(*one, 0))
        });
        eprintln!("no tunnel is left after {waited:?}");
        world.run_for(secs(3600));
        assert!(!claimers.iter().any(|claimer| world.has_tunnel(0, *claimer)), "seed {seed}");
    }
}
