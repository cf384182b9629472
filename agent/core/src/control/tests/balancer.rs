//! One address with several servers behind it.

use super::*;

/// Servers that the balancer leads to by turns; all live, as they say.
fn behind(servers: &[u8]) -> Bench {
    let each = servers.iter().map(|server| (addr(*server), (id(*server), Mood::Well)));
    let mut bench = Bench::with(&[ServerUrl::from(BALANCER)], &[], each.collect());
    bench.behind = servers.iter().copied().collect();
    bench.told.ids = servers.iter().map(|server| id(*server)).collect();
    bench
}

fn other(server: ServerId) -> u8 {
    if server == id(1) { 2 } else { 1 }
}

#[test]
fn the_standby_is_another_server_by_the_same_address_and_takes_over_as_by_any() {
    let mut bench = behind(&[1, 2]).start();
    bench.run(secs(20));
    let first = bench.serving().expect("it is served");
    let second = other(first);
    assert_eq!(bench.standbys(), [id(second)].into());
    bench.mood(first.0[0], Mood::Silent);
    bench.run(ms(1400));
    assert_eq!(bench.serving(), Some(id(second)));
    bench.mood(first.0[0], Mood::Well);
    bench.run(secs(40));
    assert_eq!(bench.standbys(), [first].into(), "it is found again");
    bench.kill(second);
    assert_eq!(bench.serving(), Some(first), "no time has passed");
}

#[test]
fn a_balancer_that_leads_to_one_server_only_is_asked_ever_more_rarely_and_that_server_is_told_nothing() {
    let mut bench = behind(&[1, 2]);
    bench.behind = [1].into();
    let mut bench = bench.start();
    bench.run(secs(10));
    let early = bench.dials_since(START).len();
    assert!((5..=9).contains(&early), "{early}");
    bench.run(secs(600));
    let before = bench.now;
    bench.run(secs(7200));
    let dials = bench.dials_since(before);
    assert!((24..=50).contains(&dials.len()), "{}", dials.len());
    assert_eq!(bench.count(|output| matches!(output, Output::Hello { .. })), 1);
}

/// Led to the same server for long enough to ask hardly any more.
fn calm() -> Bench {
    let mut bench = behind(&[1, 2]);
    bench.behind = [1].into();
    let mut bench = bench.start();
    bench.run(secs(3600));
    bench.behind = [1, 2].into();
    bench
}

#[test]
fn who_asks_rarely_asks_at_once_when_the_network_the_list_or_the_server_gives_reason_to() {
    let reasons: [fn(&mut Bench); 4] = [
        |bench| bench.control.handle_network_changed(bench.now),
        |bench| bench.control.set_servers(&[ServerUrl::from(BALANCER)], bench.now),
        |bench| {
            let told = ServerList { urls: Vec::new(), ids: vec![id(1), id(2), id(3)] };
            bench.control.handle_servers(&told, bench.now);
        },
        |bench| {
            bench.behind = [1, 2].into();
            bench.mood(1, Mood::Silent);
            bench.run(ms(1500));
            bench.mood(1, Mood::Well);
            answer_heartbeats(bench);
        },
    ];
    for (at, reason) in reasons.iter().enumerate() {
        let mut bench = calm();
        reason(&mut bench);
        bench.drain();
        bench.run(secs(2));
        assert_eq!(bench.standbys().len(), 1, "reason {at}");
    }
    let mut bench = calm();
    bench.run(secs(2));
    assert_eq!(bench.standbys().len(), 0, "without one it waits");
}

/// Dials to the first server that hung are answered.
fn answer_dials(bench: &mut Bench) {
    let hung = bench.control.connections.iter().filter(|(_, c)| matches!(c.state, State::Dialling { .. }));
    for conn in hung.map(|(conn, _)| *conn).collect::<Vec<_>>() {
        bench.control.handle_connected(conn, id(1), bench.now);
        bench.drain();
    }
}

/// .. and heartbeats.
fn answer_heartbeats(bench: &mut Bench) {
    for conn in bench.control.sessions().collect::<Vec<_>>() {
        let of_it = |(_, output): &(BootTime, Output)| {
            let Output::Heartbeat { conn: at, sequence, .. } = output else { return None };
            (*at == conn).then_some(*sequence)
        };
        let ack = bench.seen.iter().rev().find_map(of_it).map(|sequence| bench.ack(id(1), sequence));
        ack.iter().for_each(|ack| bench.control.handle_heartbeat(conn, ack, bench.now));
        bench.drain();
    }
}

/// Thousands behind a balancer that has led them to the first server for long.
fn one_of_thousands(seed: u64) -> Bench {
    let mut bench = behind(&[1, 2, 3]);
    let urls = [ServerUrl::from(BALANCER)];
    bench.control = Control::new(ControlConfig::default(), &urls, &[], (1, seed), START);
    (bench.behind, bench.spread) = ([1].into(), ms(200));
    let mut bench = bench.start();
    bench.run(secs(700));
    bench
}

#[test]
fn a_server_that_stutters_is_not_asked_at_once_by_all_who_are_led_to_it() {
    const AGENTS: usize = 40;
    let orders: [[fn(&mut Bench); 2]; 2] =
        [[answer_heartbeats, answer_dials], [answer_dials, answer_heartbeats]];
    for (order, answers) in orders.iter().enumerate() {
        let mut dials = vec![0; 6 * 15];
        for seed in 0..AGENTS {
            let mut bench = one_of_thousands(seed as u64);
            for stutter in 0..6 {
                bench.mood(1, Mood::Silent);
                bench.run(ms(1400));
                bench.mood(1, Mood::Well);
                answers.iter().for_each(|answer| answer(&mut bench));
                let back_at = bench.now;
                bench.run(ms(14_990));
                assert_eq!((bench.serving(), bench.control.failovers()), (Some(id(1)), 0));
                for (at, _) in bench.dials_since(back_at) {
                    dials[stutter * 15 + at.since(back_at).as_secs() as usize] += 1;
                }
            }
        }
        let (all, most) = (dials.iter().sum::<usize>(), dials.iter().max().copied());
        assert!(all <= 2 * AGENTS, "order {order}: {all} dials of {AGENTS} agents: {dials:?}");
        assert!(most <= Some(AGENTS / 4), "order {order}: {dials:?}");
    }
}

#[test]
fn who_lost_a_session_seeks_a_standby_in_its_turn_and_a_server_to_serve_it_at_once() {
    let mut first = Vec::new();
    for seed in 0..40 {
        let mut bench = one_of_thousands(seed);
        bench.behind = [2].into();
        let lost_at = bench.now;
        bench.kill(1);
        bench.run(ms(250));
        assert_eq!(bench.serving(), Some(id(2)));
        bench.behind = [3].into();
        bench.run(secs(11));
        assert_eq!(bench.standbys(), [id(3)].into());
        first.push(bench.dials_since(lost_at + ms(250))[0].0.since(lost_at));
    }
    first.sort_unstable();
    assert!((secs(3)..secs(7)).contains(&first[20]) && first[39] > secs(8), "{first:?}");
}

#[test]
fn thousands_come_to_a_server_that_joins_over_ten_seconds_and_few_within_one() {
    for (spread, told, within) in
        [(0, vec![], 1), (200, vec![], 10), (200, vec![url(2)], 10), (0, vec![url(2)], 1)]
    {
        let mut after = Vec::new();
        for seed in 0..100 {
            let mut bench = behind(&[1]);
            bench.control =
                Control::new(ControlConfig::default(), &[ServerUrl::from(BALANCER)], &[], (1, seed), START);
            bench.spread = ms(spread);
            let mut bench = bench.start();
            bench.run(secs(600));
            bench.servers.insert(addr(2), (id(2), Mood::Well));
            let before = bench.now;
            let both = ServerList { urls: told.clone(), ids: vec![id(1), id(2)] };
            bench.control.handle_servers(&both, bench.now);
            bench.run(secs(11));
            after.push(bench.dials_since(before).first().expect("a dial").0.since(before));
        }
        after.sort_unstable();
        let (median, worst) = (after[after.len() / 2], after[after.len() - 1]);
        assert!(worst <= secs(within) && worst >= ms(within * 900), "{spread}: {worst:?}");
        assert!((secs(within) / 3..secs(within) * 2 / 3).contains(&median), "{spread}: {median:?}");
    }
}

#[test]
fn who_lost_its_server_does_not_wait_for_its_turn_at_one_that_joins() {
    let mut bench = behind(&[1]);
    bench.spread = ms(200);
    let mut bench = bench.start();
    bench.run(secs(600));
    bench.servers.insert(addr(2), (id(2), Mood::Well));
    let both = ServerList { urls: vec![url(2)], ids: vec![id(1), id(2)] };
    bench.control.handle_servers(&both, bench.now);
    bench.kill(1);
    bench.run(ms(250));
    assert_eq!(bench.serving(), Some(id(2)));
}

#[test]
fn a_frozen_server_behind_the_balancer_is_dialled_once_at_a_time() {
    let mut bench = behind(&[1, 2]);
    bench.mood(2, Mood::Silent);
    let mut bench = bench.start();
    for _ in 0..600 {
        bench.run(ms(100));
        let dialling = bench.control.connections.values().filter(|c| !c.has_session()).count();
        assert!(dialling <= 1, "{dialling} at once");
    }
    assert_eq!(bench.serving(), Some(id(1)));
}

#[test]
fn on_a_network_of_one_server_nobody_is_sought() {
    let mut bench = behind(&[1]).start();
    bench.run(secs(3600));
    assert_eq!(bench.dials_since(START).len(), 1);
}

#[test]
fn a_server_that_joins_a_small_network_is_found_within_seconds() {
    let mut bench = behind(&[1]).start();
    bench.run(secs(600));
    bench.servers.insert(addr(2), (id(2), Mood::Well));
    bench.behind = [1, 2].into();
    let both = ServerList { urls: Vec::new(), ids: vec![id(1), id(2)] };
    bench.control.handle_servers(&both, bench.now);
    bench.run(secs(2));
    assert_eq!(bench.standbys(), [id(2)].into());
}

#[test]
fn where_the_other_server_has_an_address_of_its_own_it_is_not_sought_behind_this_ones() {
    let mut bench = Bench::new(2);
    bench.told.ids = vec![id(1), id(2)];
    let mut bench = bench.start();
    bench.run(secs(5));
    bench.kill(2);
    let before = bench.now;
    bench.run(secs(50));
    assert!(bench.dials_since(before).iter().all(|(_, at)| *at == addr(2)));
    bench.run(secs(60));
    assert!(
        bench.dials_since(before).iter().any(|(_, at)| *at == addr(1)),
        "the address may be lost for good"
    );
}

#[test]
fn servers_that_only_tell_of_addresses_that_fail_are_found_behind_the_common_one() {
    let mut bench = behind(&[1, 2]);
    bench.told.urls = vec![ServerUrl::from(BALANCER), url(7), url(8)];
    let mut bench = bench.start();
    bench.run(secs(20));
    assert_eq!(bench.standbys().len(), 1);
}

#[test]
fn a_server_that_drains_behind_a_balancer_serves_until_another_does() {
    let mut bench = behind(&[1, 2]);
    bench.behind = [1].into();
    let mut bench = bench.start();
    bench.run(secs(5));
    bench.behind = [2].into();
    let leaving = bench.conn_of(1);
    bench.control.handle_drain(leaving, bench.now);
    bench.drain();
    bench.run(ms(200));
    assert_eq!(bench.serving(), Some(id(2)));
    assert_eq!(bench.count(|output| matches!(output, Output::Unserved)), 0);
}

#[test]
fn names_of_one_address_lead_to_different_servers_through_a_gateway_that_reads_them() {
    let names = ["s1.example", "s2.example"];
    let urls: Vec<ServerUrl> = names.iter().map(|name| name.parse().unwrap()).collect();
    let servers = [(addr(1), (id(1), Mood::Well)), (addr(2), (id(2), Mood::Well))];
    let mut bench = Bench::with(&urls, &[], servers.into());
    bench.told.ids = vec![id(1), id(2)];
    for (server, name) in (1..).zip(names) {
        bench.names.insert(name.into(), Ok(vec![BALANCER]));
        bench.by_name.insert(name.into(), server);
    }
    let mut bench = bench.start();
    bench.run(secs(5));
    assert_eq!((bench.serving(), bench.standbys()), (Some(id(1)), [id(2)].into()));
    assert_eq!(bench.dials_since(START).len(), 2);
    bench.kill(1);
    assert_eq!(bench.serving(), Some(id(2)), "no time has passed");
    let before = bench.now;
    bench.run(secs(20));
    bench.kill(2);
    bench.mood(1, Mood::Well);
    bench.run(secs(2));
    assert_eq!(bench.serving(), Some(id(1)), "the other name is tried on its own");
    assert!(bench.dials_since(before).len() < 60, "{}", bench.dials_since(before).len());
}
