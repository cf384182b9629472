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
