//! What clients spend on those that they do not use at the moment.

use super::*;

#[test]
fn a_client_that_uses_nothing_asks_nobody_and_one_in_use_asks_the_standby_every_25_s() {
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
    assert!(in_use <= 60 && idle == 0);
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
