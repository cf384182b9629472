//! The machine with servers that answer at once, die, fall silent or lie.

use super::*;
use proto::{map::MapVersion, receipt::Receipt, session::Reason};
use std::collections::BTreeSet;

mod balancer;

const START: BootTime = BootTime::from_duration(Duration::from_secs(100));

const BALANCER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 99)), 7443);

fn id(server: u8) -> ServerId {
    ServerId([server; 16])
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 7443))
}

fn url(last: u8) -> ServerUrl {
    ServerUrl::from(addr(last))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// Nothing listens.
    Dead,
    /// It takes everything and says nothing.
    Silent,
    Refuses(Reason),
}

/// Which server answers at which address, and how.
struct Bench {
    control: Control,
    now: BootTime,
    servers: BTreeMap<SocketAddr, (ServerId, Mood)>,
    names: BTreeMap<String, Result<Vec<SocketAddr>, String>>,
    addr_of: BTreeMap<ConnId, SocketAddr>,
    /// Servers that lost the database, and when.
    level_at: BTreeMap<ServerId, BootTime>,
    /// Servers behind [`BALANCER`], by turns.
    behind: VecDeque<u8>,
    /// .. or by the name that is asked for.
    by_name: BTreeMap<String, u8>,
    spread: Duration,
    told: ServerList,
    /// Everything that was put out, with its time.
    seen: Vec<(BootTime, Output)>,
}

impl Bench {
    /// Servers 1, 2, .. each at its address.
    fn new(count: u8) -> Self {
        let urls: Vec<ServerUrl> = (1..=count).map(url).collect();
        let servers = (1..=count).map(|server| (addr(server), (id(server), Mood::Well))).collect();
        Self::with(&urls, &[], servers)
    }

    fn with(
        urls: &[ServerUrl],
        known: &[(ServerUrl, Vec<SocketAddr>)],
        servers: BTreeMap<SocketAddr, (ServerId, Mood)>,
    ) -> Self {
        Self {
            control: Control::new(ControlConfig::default(), urls, known, (1, 7), START),
            now: START,
            servers,
            names: BTreeMap::new(),
            addr_of: BTreeMap::new(),
            level_at: BTreeMap::new(),
            behind: VecDeque::new(),
            by_name: BTreeMap::new(),
            spread: Duration::ZERO,
            told: ServerList::default(),
            seen: Vec::new(),
        }
    }

    fn start(mut self) -> Self {
        self.control.start(self.now);
        self.drain();
        self
    }

    fn mood(&mut self, server: u8, mood: Mood) {
        self.servers.get_mut(&addr(server)).unwrap().1 = mood;
    }

    /// The process ends: its connections are reset.
    fn kill(&mut self, server: u8) {
        self.mood(server, Mood::Dead);
        let conns: Vec<ConnId> =
            self.addr_of.iter().filter(|(_, at)| **at == addr(server)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.control.handle_closed(conn, &Closed::Ended("reset".into()), self.now);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.control.poll_output() {
            self.seen.push((self.now, output.clone()));
            self.answer(output);
        }
    }

    fn answer(&mut self, output: Output) {
        match output {
            Output::Resolve(url) => {
                let result =
                    self.names.get(url.host()).cloned().unwrap_or_else(|| Err("no such name".into()));
                self.control.handle_resolved(&url, result, self.now);
            }
            Output::Dial(dial) => {
                let addr = self.passed_on(&dial);
                self.addr_of.insert(dial.conn, addr);
                match self.servers.get(&addr) {
                    Some((_, Mood::Silent)) => {}
                    Some((server, Mood::Well | Mood::Refuses(_))) => {
                        self.control.handle_connected(dial.conn, *server, self.now);
                    }
                    Some((_, Mood::Dead)) | None => {
                        self.control.handle_closed(dial.conn, &Closed::Connect("refused".into()), self.now);
                    }
                }
            }
            Output::Hello { conn, activate, .. } => self.greet(conn, activate),
            Output::Heartbeat { conn, sequence, .. } => {
                if let (server, Mood::Well) = self.server_of(conn) {
                    let ack = self.ack(server, sequence);
                    self.control.handle_heartbeat(conn, &ack, self.now);
                }
            }
            Output::Activate { conn, .. } => {
                if self.server_of(conn).1 == Mood::Well {
                    self.control.handle_activated(conn, self.now);
                }
            }
            Output::Close { conn } => {
                self.addr_of.remove(&conn);
            }
            Output::Deactivate { .. } | Output::Served(_) | Output::Unserved | Output::Refused(_) => {}
        }
    }

    fn passed_on(&mut self, dial: &Dial) -> SocketAddr {
        if let Some(server) = self.by_name.get(dial.url.host()) {
            return addr(*server);
        }
        if dial.addr != BALANCER || self.behind.is_empty() {
            return dial.addr;
        }
        self.behind.rotate_left(1);
        addr(self.behind[0])
    }

    fn greet(&mut self, conn: ConnId, activate: bool) {
        match self.server_of(conn) {
            (_, Mood::Refuses(reason)) => {
                let detail = format!("{reason:?}");
                let refused = Refused { reason, detail, retry_after: None, removal: Vec::new() };
                self.control.handle_refused(conn, &refused, self.now);
            }
            (server, Mood::Well) => {
                let welcome = Welcome {
                    server,
                    server_name: String::new(),
                    servers: self.told.clone(),
                    heartbeat_interval: Duration::ZERO,
                    at: MapVersion::default(),
                    unix_ms: 0,
                    observed_address: None,
                    membership: Vec::new(),
                    roots: None,
                };
                self.control.handle_welcome(conn, &welcome, self.now);
                if activate {
                    self.control.handle_activated(conn, self.now);
                }
            }
            (_, Mood::Silent | Mood::Dead) => {}
        }
    }

    fn server_of(&self, conn: ConnId) -> (ServerId, Mood) {
        self.servers[&self.addr_of[&conn]]
    }

    fn ack(&self, server: ServerId, sequence: u64) -> HeartbeatAck {
        HeartbeatAck {
            sequence,
            server,
            at: MapVersion::default(),
            revision_age: self.level_at.get(&server).map_or(Duration::ZERO, |at| self.now.since(*at)),
            database_ok: true,
            spread: self.spread,
            heartbeat_interval: Duration::ZERO,
            unix_ms: 0,
            receipt: Receipt::default(),
            map: MapVersion::default(),
        }
    }

    /// Goes from deadline to deadline for `span`.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut stuck = 0;
        while let Some(deadline) = self.control.poll_timeout().filter(|deadline| deadline.at <= end) {
            stuck = if deadline.at > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 20, "spins at {deadline:?}");
            self.now = self.now.max(deadline.at);
            self.control.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// The server that serves, for sure or under suspicion.
    fn serving(&self) -> Option<ServerId> {
        self.control.serving().and_then(|conn| self.control.connections[&conn].server)
    }

    fn conn_of(&self, server: u8) -> ConnId {
        let of_it = |(_, at): &(&ConnId, &SocketAddr)| **at == addr(server);
        *self.addr_of.iter().find(of_it).expect("a connection").0
    }

    fn standbys(&self) -> BTreeSet<ServerId> {
        let standby = |c: &&Connection| matches!(c.state, State::Standby);
        self.control.connections.values().filter(standby).filter_map(|c| c.server).collect()
    }

    fn dials_since(&self, since: BootTime) -> Vec<(BootTime, SocketAddr)> {
        let dial = |(at, output): &(BootTime, Output)| {
            let Output::Dial(dial) = output else { return None };
            (*at >= since).then_some((*at, dial.addr))
        };
        self.seen.iter().filter_map(dial).collect()
    }

    fn count(&self, wanted: impl Fn(&Output) -> bool) -> usize {
        self.seen.iter().filter(|(_, output)| wanted(output)).count()
    }
}

#[test]
fn the_first_named_server_serves_and_one_other_stands_by() {
    let mut bench = Bench::new(3).start();
    bench.run(secs(60));
    assert_eq!(bench.serving(), Some(id(1)));
    assert_eq!(bench.standbys().len(), 1);
    assert_eq!(bench.dials_since(START).len(), 2, "the third is left alone");
}

#[test]
fn a_reset_activates_the_standby_at_once() {
    let mut bench = Bench::new(3).start();
    bench.run(secs(5));
    bench.kill(1);
    assert_eq!(bench.serving(), Some(id(2)), "no time has passed");
    bench.run(secs(1));
    assert_eq!(bench.standbys(), [id(3)].into());
    assert_eq!(bench.control.failovers(), 1);
}

#[test]
fn a_late_heartbeat_activates_the_standby_and_peer_timeout_ends_the_suspect() {
    let mut bench = Bench::new(3).start();
    bench.run(ms(5100));
    let first = bench.conn_of(1);
    bench.mood(1, Mood::Silent);
    bench.run(ms(1100));
    assert_eq!(bench.serving(), Some(id(1)), "a heartbeat of which the answer is not late yet");
    bench.run(ms(300));
    assert_eq!(bench.serving(), Some(id(2)));
    assert!(bench.addr_of.contains_key(&first), "its last chance");
    bench.run(secs(3));
    assert!(!bench.addr_of.contains_key(&first), "it is dead");
}

#[test]
fn a_suspect_that_answers_before_another_serves_goes_on_under_a_new_number() {
    let mut bench = Bench::new(2).start();
    bench.run(ms(5100));
    bench.mood(1, Mood::Silent);
    bench.mood(2, Mood::Silent);
    bench.run(ms(1250));
    let first = bench.conn_of(1);
    let State::Suspect = bench.control.connections[&first].state else { panic!("not suspected") };
    bench.mood(1, Mood::Well);
    let sequence = bench.seen.iter().rev().find_map(|(_, output)| {
        let Output::Heartbeat { conn, sequence, .. } = output else { return None };
        (*conn == first).then_some(*sequence)
    });
    let ack = bench.ack(id(1), sequence.unwrap());
    bench.control.handle_heartbeat(first, &ack, bench.now);
    bench.drain();
    assert_eq!(bench.serving(), Some(id(1)));
    let last_two: Vec<&Output> = bench.seen.iter().rev().take(2).map(|(_, output)| output).collect();
    let asked = |output: &&Output| matches!(output, Output::Activate { conn, number } if *conn == first && number.counter > 3);
    assert!(last_two.iter().any(asked), "its server may have stepped back: {last_two:?}");
    assert_eq!(bench.control.failovers(), 0);
}

#[test]
fn two_addresses_of_one_server_are_no_standby_and_are_looked_at_again_later() {
    let servers = [(addr(1), (id(1), Mood::Well)), (addr(2), (id(1), Mood::Well))];
    let mut bench = Bench::with(&[url(1), url(2)], &[], servers.into()).start();
    bench.run(secs(50));
    assert_eq!((bench.standbys().len(), bench.dials_since(START).len()), (0, 2));
    bench.servers.insert(addr(2), (id(2), Mood::Well));
    bench.run(secs(20));
    assert_eq!(bench.standbys(), [id(2)].into());
}

#[test]
fn a_draining_server_is_left_and_not_dialled_again_at_once() {
    let mut bench = Bench::new(1).start();
    bench.run(secs(5));
    let before = bench.now;
    bench.mood(1, Mood::Refuses(Reason::Draining));
    let conn = bench.conn_of(1);
    bench.control.handle_drain(conn, bench.now);
    bench.drain();
    assert_eq!(bench.serving(), None, "it need not wait for us");
    bench.run(secs(1));
    assert!((1..=10).contains(&bench.dials_since(before).len()), "{}", bench.dials_since(before).len());
}

#[test]
fn a_draining_server_serves_until_the_standby_does() {
    let mut bench = Bench::new(2).start();
    bench.run(secs(5));
    bench.mood(1, Mood::Refuses(Reason::Draining));
    let leaving = bench.conn_of(1);
    bench.control.handle_drain(leaving, bench.now);
    bench.drain();
    assert_eq!(bench.serving(), Some(id(2)));
    assert!(!bench.addr_of.contains_key(&leaving), "it need not wait for us");
    bench.run(secs(5));
    assert!(bench.standbys().is_empty());
}

#[test]
fn where_the_only_other_server_is_dead_a_draining_one_is_asked_with_back_off() {
    let mut bench = Bench::new(2).start();
    bench.run(secs(5));
    bench.kill(2);
    bench.mood(1, Mood::Refuses(Reason::Draining));
    let before = bench.now;
    bench.control.handle_drain(bench.conn_of(1), bench.now);
    bench.drain();
    bench.run(secs(2));
    assert!(bench.dials_since(before).len() < 40, "{}", bench.dials_since(before).len());
}

#[test]
fn failovers_are_spread_over_the_time_that_servers_advise() {
    let mut bench = Bench::new(2).start();
    bench.spread = ms(200);
    bench.run(secs(5));
    bench.kill(1);
    assert_eq!(bench.serving(), None, "not at once");
    bench.run(ms(200));
    assert_eq!(bench.serving(), Some(id(2)));
}

#[test]
fn bad_news_is_believed_from_a_second_server_and_not_from_the_same_by_another_address() {
    let removed = Mood::Refuses(Reason::Removed);
    let servers = [(addr(1), (id(1), removed)), (addr(2), (id(1), removed))];
    let mut bench = Bench::with(&[url(1), url(2)], &[], servers.into()).start();
    let told = |bench: &Bench| bench.count(|output| matches!(output, Output::Refused(_)));
    bench.run(secs(9));
    assert_eq!(told(&bench), 0, "one server says so, twice");
    bench.run(secs(2));
    assert_eq!(told(&bench), 1, "nobody contradicted in time");

    let mut bench = Bench::new(2);
    (1..=2).for_each(|server| bench.mood(server, removed));
    let mut bench = bench.start();
    bench.run(ms(500));
    assert_eq!(told(&bench), 1, "two servers say so");
}

#[test]
fn bad_news_that_another_server_contradicts_is_forgotten() {
    let mut bench = Bench::new(2);
    bench.mood(1, Mood::Refuses(Reason::UnknownNode));
    let mut bench = bench.start();
    bench.run(secs(60));
    assert_eq!(bench.serving(), Some(id(2)));
    assert_eq!(bench.count(|output| matches!(output, Output::Refused(_))), 0);
}

#[test]
fn a_server_behind_its_database_is_left_only_for_one_that_is_not() {
    let mut bench = Bench::new(2).start();
    bench.run(secs(5));
    (1..=2).for_each(|server| {
        bench.level_at.insert(id(server), bench.now);
    });
    bench.run(secs(60));
    assert_eq!((bench.serving(), bench.control.failovers()), (Some(id(1)), 0), "the other is no better");
    bench.level_at.remove(&id(2));
    bench.run(secs(12));
    assert_eq!(bench.serving(), Some(id(2)));
}

#[test]
fn servers_that_the_cluster_tells_are_used_and_forgotten_when_it_tells_others() {
    let mut bench = Bench::new(1);
    bench.servers.insert(addr(2), (id(2), Mood::Well));
    bench.told.urls = vec![url(1), url(2)];
    let mut bench = bench.start();
    bench.run(secs(1));
    assert_eq!(bench.standbys(), [id(2)].into());
    bench.kill(2);
    bench.run(secs(1));
    bench.control.handle_servers(&ServerList { urls: vec![url(1)], ids: Vec::new() }, bench.now);
    bench.drain();
    let before = bench.now;
    bench.run(secs(60));
    assert_eq!(bench.dials_since(before), [], "told no more, and failing");
    assert_eq!(bench.serving(), Some(id(1)));
}

#[test]
fn a_name_that_does_not_resolve_keeps_the_addresses_that_worked() {
    let name: ServerUrl = "vpn.example".parse().unwrap();
    let known = [(name.clone(), vec![addr(1)])];
    let servers = [(addr(1), (id(1), Mood::Well)), (addr(2), (id(2), Mood::Well))];
    let mut bench = Bench::with(&[name], &known, servers.into()).start();
    bench.run(secs(5));
    assert_eq!(bench.serving(), Some(id(1)));
    bench.names.insert("vpn.example".into(), Ok(vec![addr(2)]));
    bench.run(secs(5));
    assert_eq!(bench.standbys(), [id(2)].into(), "the name is there");
    bench.names.insert("vpn.example".into(), Ok(vec![addr(9)]));
    bench.kill(2);
    bench.run(secs(60));
    assert_eq!(bench.serving(), Some(id(1)), "the name lies, and the session goes on");
}

#[test]
fn a_name_whose_address_fails_is_looked_up_again_at_once_but_not_more_than_once_a_second() {
    let name: ServerUrl = "vpn.example".parse().unwrap();
    let servers = [(addr(1), (id(1), Mood::Well)), (addr(2), (id(2), Mood::Well))];
    let mut bench = Bench::with(std::slice::from_ref(&name), &[], servers.into());
    bench.names.insert("vpn.example".into(), Ok(vec![addr(1)]));
    let mut bench = bench.start();
    bench.run(secs(5));
    bench.names.insert("vpn.example".into(), Ok(vec![addr(2)]));
    bench.kill(1);
    bench.run(ms(100));
    assert_eq!(bench.serving(), Some(id(2)), "the name leads elsewhere by now");
    bench.mood(2, Mood::Dead);
    bench.run(secs(2));
    bench.kill(2);
    let look_ups = |bench: &Bench| bench.count(|output| matches!(output, Output::Resolve(_)));
    let before = look_ups(&bench);
    bench.run(secs(10));
    assert!((5..=11).contains(&(look_ups(&bench) - before)), "{}", look_ups(&bench) - before);
}

#[test]
fn back_off_grows_with_the_outage_and_begins_anew_after_a_success() {
    let mut bench = Bench::new(1);
    bench.mood(1, Mood::Dead);
    let mut bench = bench.start();
    bench.run(secs(600));
    let dials = bench.dials_since(START);
    let gaps = |from: u64, to: u64| {
        let within = |(at, _): &&(BootTime, SocketAddr)| (secs(from)..secs(to)).contains(&at.since(START));
        let at: Vec<BootTime> = dials.iter().filter(within).map(|(at, _)| *at).collect();
        at.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap()
    };
    assert!(gaps(0, 60) <= secs(1), "{:?}", gaps(0, 60));
    assert!(gaps(500, 600) > secs(3) && gaps(500, 600) <= secs(20), "{:?}", gaps(500, 600));
    assert!(dials.len() < 400, "{}", dials.len());
    bench.mood(1, Mood::Well);
    bench.run(secs(20));
    assert_eq!(bench.serving(), Some(id(1)));
    bench.kill(1);
    let before = bench.now;
    bench.run(secs(1));
    assert!(bench.dials_since(before).len() >= 3, "{:?}", bench.dials_since(before));
}

#[test]
fn dials_are_staggered_and_few_at_once() {
    let mut bench = Bench::new(8);
    (1..=8).for_each(|server| bench.mood(server, Mood::Silent));
    let mut bench = bench.start();
    bench.run(ms(900));
    let dials = bench.dials_since(START);
    assert_eq!(dials.len(), ControlConfig::default().max_dials);
    assert!(dials.windows(2).all(|pair| pair[1].0.since(pair[0].0) >= ms(50)));
}

#[test]
fn a_change_of_network_asks_every_session_and_every_server_at_once() {
    let mut bench = Bench::new(1);
    bench.mood(1, Mood::Dead);
    let mut bench = bench.start();
    bench.run(secs(600));
    bench.mood(1, Mood::Well);
    bench.control.handle_network_changed(bench.now);
    bench.drain();
    assert_eq!(bench.serving(), Some(id(1)), "no back-off");
    bench.run(ms(1500));
    let beats = bench.count(|output| matches!(output, Output::Heartbeat { .. }));
    bench.control.handle_network_changed(bench.now);
    bench.drain();
    assert_eq!(bench.count(|output| matches!(output, Output::Heartbeat { .. })), beats + 1);
}

#[test]
fn nobody_is_told_of_an_outage_while_a_session_may_still_serve() {
    let mut bench = Bench::new(2).start();
    bench.run(secs(5));
    bench.kill(1);
    assert_eq!(bench.count(|output| matches!(output, Output::Unserved)), 0);
    bench.kill(2);
    assert_eq!(bench.count(|output| matches!(output, Output::Unserved)), 1);
    bench.run(secs(100));
    assert_eq!(bench.count(|output| matches!(output, Output::Unserved)), 1, "said once");
}

#[test]
fn memory_stays_flat_however_long_nothing_answers() {
    let mut bench = Bench::new(4);
    (1..=4).for_each(|server| bench.mood(server, Mood::Dead));
    let mut bench = bench.start();
    bench.run(secs(60));
    let load = bench.control.load();
    bench.run(secs(3600));
    assert!(bench.control.load() <= load + 4, "{} then {}", load, bench.control.load());
}
