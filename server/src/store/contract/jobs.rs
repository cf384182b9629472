//! Leases of servers with one id, and what one server at a time does for all.

use super::{enter, live, setup_key};
use crate::{
    cluster::{EntityId, Op, SetupKeyTerms},
    follow::Cluster,
    gate::{Gate, Limits},
    jobs::{self, JobError},
    serve::Server,
    settings::Settings,
    store::{
        Incarnation, Job, LastSeen, LeaseAnswer, ServerRow, Store, Tail,
        testing::{Database, eventually},
    },
};
use live::{server, session};
use proto::{statement::NodeId, time::UnixTime};
use std::time::{Duration, Instant};

on_both_databases!(
    of_two_servers_with_one_id_the_one_whose_lease_runs_keeps_it,
    a_restarted_server_takes_the_lease_of_its_predecessor_over_at_once,
    whoever_finds_no_server_alive_begins_a_new_time_of_service,
    the_database_tells_what_time_it_is,
    a_server_that_agents_were_last_seen_at_is_not_forgotten,
    a_job_is_run_by_one_server_at_a_time_and_when_it_is_due,
    who_was_frozen_past_its_lease_acts_on_nothing,
    ephemeral_nodes_that_stay_away_are_removed_once_by_two_servers,
    nobody_is_removed_for_a_time_when_no_server_lived,
    ephemeral_nodes_at_a_server_that_is_cut_off_stay_until_it_says_who_is_there,
);

const LONG: Duration = Duration::from_secs(60);

fn run_of(id: u8, incarnation: u8) -> ServerRow {
    ServerRow { incarnation: Incarnation([incarnation; 16]), ..server(id) }
}

fn is_held(answer: &LeaseAnswer) -> bool {
    matches!(answer, LeaseAnswer::Held { .. })
}

async fn of_two_servers_with_one_id_the_one_whose_lease_runs_keeps_it(database: Database) {
    let store = database.open().await;
    let (first, clone) = (run_of(1, 1), ServerRow { name: "clone".to_owned(), ..run_of(1, 2) });
    const TTL: Duration = Duration::from_millis(300);
    assert!(is_held(&store.renew_lease(&first, TTL).await.unwrap()));
    let answer = store.renew_lease(&clone, LONG).await.unwrap();
    assert!(matches!(&answer, LeaseAnswer::Taken(other) if other.server == first), "{answer:?}");
    store.release_lease(&clone).await.unwrap();
    assert_eq!(store.live_servers().await.unwrap()[0].server, first, "it ends only its own");
    let taken_over = async || is_held(&store.renew_lease(&clone, LONG).await.unwrap());
    eventually("a lease that ended is free", taken_over).await;
    let answer = store.renew_lease(&first, LONG).await.unwrap();
    assert!(matches!(&answer, LeaseAnswer::Taken(other) if other.server == clone), "{answer:?}");
}

async fn a_restarted_server_takes_the_lease_of_its_predecessor_over_at_once(database: Database) {
    let store = database.open().await;
    let (before, after, stranger) = (run_of(1, 1), run_of(1, 2), Incarnation([9; 16]));
    store.renew_lease(&before, LONG).await.unwrap();
    store.inherit_lease(&after, stranger).await.unwrap();
    assert!(!is_held(&store.renew_lease(&after, LONG).await.unwrap()), "that was not its own");
    store.inherit_lease(&after, before.incarnation).await.unwrap();
    assert_eq!(store.live_servers().await.unwrap().len(), 1, "it was never away");
    assert!(is_held(&store.renew_lease(&after, LONG).await.unwrap()));
}

async fn whoever_finds_no_server_alive_begins_a_new_time_of_service(database: Database) {
    let store = database.open().await;
    let begins = async |row: &ServerRow, ttl| match store.renew_lease(row, ttl).await.unwrap() {
        LeaseAnswer::Held { begins_period, .. } => begins_period,
        LeaseAnswer::Taken(other) => panic!("taken by {other:?}"),
    };
    let short = Duration::from_millis(200);
    assert!(begins(&server(1), short).await);
    assert!(!begins(&server(2), short).await, "the other one lives");
    database.sql(since_long_ago(&database)).await;
    let since = async || store.attendance(&[]).await.unwrap().served_since;
    assert_eq!(since().await, UnixTime(1_000));
    assert!(!begins(&server(1), short).await);
    assert_eq!(since().await, UnixTime(1_000), "it goes on");
    eventually("all leases end", async || store.live_servers().await.unwrap().is_empty()).await;
    assert!(begins(&server(1), short).await);
    assert!(since().await > UnixTime(1_000));
}

fn since_long_ago(database: &Database) -> &'static str {
    match database.is_sqlite() {
        true => "UPDATE presence SET served_since_ms = 1000000",
        false => "UPDATE presence SET served_since = to_timestamp(1000)",
    }
}

async fn the_database_tells_what_time_it_is(database: Database) {
    let store = database.open().await;
    let machine_ms = crate::clock::machine_ms();
    // On this machine, so its clock is the same.
    assert!(store.now_ms().await.unwrap().abs_diff(machine_ms) < 5_000);
    let answer = store.renew_lease(&server(1), LONG).await.unwrap();
    assert!(matches!(answer, LeaseAnswer::Held { now_ms, .. } if now_ms.abs_diff(machine_ms) < 5_000));
}

async fn a_server_that_agents_were_last_seen_at_is_not_forgotten(database: Database) {
    let store = database.open().await;
    live::add_nodes(&database, 7..10).await;
    for id in [1, 2] {
        store.renew_lease(&server(id), LONG).await.unwrap();
    }
    let rows = [session(7, 1, 1, 1, true), session(8, 2, 1, 1, false)];
    store.put_sessions(&rows).await.unwrap();
    let seen = async || store.attendance(&[NodeId(7), NodeId(8), NodeId(9)]).await.unwrap();
    let at_first = seen().await;
    assert_eq!(at_first.nodes[&NodeId(7)], LastSeen::Online);
    assert!(matches!(at_first.nodes[&NodeId(8)], LastSeen::Until(at) if at.0.abs_diff(at_first.now.0) < 10));
    assert_eq!(at_first.nodes[&NodeId(9)], LastSeen::Never);
    // Both fell silent two days ago.
    database
        .sql(match database.is_sqlite() {
            true => "UPDATE servers SET lease_until_ms = 2000000; UPDATE sessions SET changed_ms = 1000000",
            false => {
                "UPDATE servers SET lease_until = to_timestamp(2000);
                 UPDATE sessions SET changed_at = to_timestamp(1000)"
            }
        })
        .await;
    store.renew_lease(&server(3), LONG).await.unwrap();
    let later = seen().await;
    assert_eq!(later.nodes[&NodeId(7)], LastSeen::Unheard(UnixTime(2_000)), "when its server fell silent");
    assert_eq!(later.nodes[&NodeId(8)], LastSeen::Until(UnixTime(1_000)));
    assert!(later.served_since > UnixTime(2_000));
}

async fn ephemeral_nodes_at_a_server_that_is_cut_off_stay_until_it_says_who_is_there(database: Database) {
    let server = unstarted(&database, 1).await;
    add_ephemeral(&server.cluster, 2).await;
    let store = server.cluster.store();
    let nodes: Vec<_> = server.cluster.state().nodes().map(|node| node.id).collect();
    let cut = live::server(2);
    store.renew_lease(&cut, LONG).await.unwrap();
    store
        .put_sessions(&nodes.iter().map(|id| session(id.0, 2, 1, 1, true)).collect::<Vec<_>>())
        .await
        .unwrap();
    // Long ago it fell silent, and this one did not.
    let long_ago = match database.is_sqlite() {
        true => {
            "UPDATE servers SET lease_until_ms = lease_until_ms - 3660000 WHERE name = 'server-2';
             UPDATE presence SET served_since_ms = served_since_ms - 7200000;
             UPDATE sessions SET changed_ms = changed_ms - 7200000"
        }
        false => {
            "UPDATE servers SET lease_until = lease_until - interval '61 minutes' WHERE name = 'server-2';
             UPDATE presence SET served_since = served_since - interval '2 hours';
             UPDATE sessions SET changed_at = changed_at - interval '2 hours'"
        }
    };
    database.sql(long_ago).await;
    let left = async || {
        jobs::run_job(&server, Job::Ephemeral, Duration::ZERO).await.unwrap();
        server.cluster.state().node_count()
    };
    let entered_at = server.cluster.state().nodes().map(|node| node.updated_at).max().unwrap();
    let timeout = server.settings.ephemeral_timeout + Duration::from_secs(1);
    let is_old = async || UnixTime(store.now_ms().await.unwrap() / 1000).since(entered_at) >= timeout;
    eventually("since they entered the timeout has passed", is_old).await;
    assert_eq!(left().await, 2, "nobody knows that they went");
    store.renew_lease(&cut, LONG).await.unwrap();
    store.put_sessions(&[session(nodes[0].0, 2, 1, 1, false)]).await.unwrap();
    eventually("it is back, and says that one went", async || left().await == 1).await;
    store.release_lease(&cut).await.unwrap();
    eventually("it takes its leave in order", async || left().await == 0).await;
}

async fn a_job_is_run_by_one_server_at_a_time_and_when_it_is_due(database: Database) {
    let store = database.open().await;
    let begin =
        async |row: ServerRow, ttl, every| store.begin_job(Job::Expiry, &row, ttl, every).await.unwrap();
    let first = begin(server(1), LONG, LONG).await.expect("nobody has run it");
    assert_eq!(begin(server(2), LONG, LONG).await, None, "the other one does");
    let other_job = store.begin_job(Job::Ephemeral, &server(2), LONG, LONG).await.unwrap();
    assert!(other_job.is_some());
    let again = begin(server(1), LONG, LONG).await.expect("it is its own");
    assert!(again.token > first.token);
    store.end_job(first).await.unwrap();
    let jobs = store.jobs().await.unwrap();
    assert_eq!(jobs.iter().map(|job| &*job.name).collect::<Vec<_>>(), ["ephemeral", "expiry"]);
    assert!(jobs[1].held_for.is_some() && jobs[1].last_run.is_none(), "an old lock ends nothing: {jobs:?}");
    store.end_job(again).await.unwrap();
    assert_eq!(begin(server(2), LONG, LONG).await, None, "it was run a moment ago");
    let jobs = store.jobs().await.unwrap();
    assert!(jobs[1].held_for.is_none() && jobs[1].last_run.is_some() && jobs[1].server == server(1).id);
    assert!(begin(server(2), LONG, Duration::ZERO).await.is_some());
}

/// A server that is not started: its parts, on the database.
async fn unstarted(database: &Database, id: u8) -> Server {
    let settings = Settings { ephemeral_timeout: Duration::from_secs(2), lease: LONG, ..Settings::default() };
    let gate = Gate::new(Limits::default(), None);
    let server = Server::new(server(id), database.cluster().await, settings, gate).unwrap();
    server.cluster.store().renew_lease(&server.servers.me, LONG).await.unwrap();
    server
}

async fn add_ephemeral(cluster: &Cluster, count: usize) {
    let terms = SetupKeyTerms { reusable: true, ephemeral: true, ..SetupKeyTerms::default() };
    let secret = setup_key(cluster, &terms).await;
    for _ in 0..count {
        enter(cluster, &secret, "ephemeral").await.unwrap();
    }
}

/// How often each node was deleted since.
async fn deletions(store: &dyn Store, since: crate::cluster::Head) -> Vec<NodeId> {
    let Tail::Changes(changes) = store.tail(since).await.unwrap() else { panic!("the log was lost") };
    let ops = changes.into_iter().flat_map(|change| change.ops);
    ops.filter_map(|op| if let Op::Delete(EntityId::Node(id)) = op { Some(id) } else { None }).collect()
}

async fn who_was_frozen_past_its_lease_acts_on_nothing(database: Database) {
    let (frozen, other) = (unstarted(&database, 1).await, unstarted(&database, 2).await);
    add_ephemeral(&frozen.cluster, 1).await;
    let store = frozen.cluster.store();
    let (short, row) = (Duration::from_millis(50), &frozen.servers.me);
    let old = store.begin_job(Job::Ephemeral, row, short, Duration::ZERO).await.unwrap().unwrap();
    let taken = async || {
        store.begin_job(Job::Ephemeral, &other.servers.me, LONG, Duration::ZERO).await.unwrap().is_some()
    };
    eventually("the other takes it over", taken).await;
    let before = frozen.cluster.state().head();
    let is_fenced = async || jobs::remove_absent(&frozen, old).await == Err(JobError::Fenced);
    eventually("the node is due, and the job no longer its own", is_fenced).await;
    assert_eq!(store.status().await.unwrap().head, before);
    assert_eq!(frozen.cluster.state().node_count(), 1);
}

async fn ephemeral_nodes_that_stay_away_are_removed_once_by_two_servers(database: Database) {
    let (a, b) = (unstarted(&database, 1).await, unstarted(&database, 2).await);
    add_ephemeral(&a.cluster, 5).await;
    let lasting = setup_key(&a.cluster, &SetupKeyTerms::default()).await;
    let stays = enter(&a.cluster, &lasting, "stays").await.unwrap();
    let nodes: Vec<_> = a.cluster.state().nodes().map(|node| node.id).collect();
    // One is served by the other server, which this one has not heard of.
    let served = nodes[2];
    b.cluster.store().put_sessions(&[session(served.0, 2, 1, 1, true)]).await.unwrap();
    let before = a.cluster.state().head();
    let both = async || {
        let runs = tokio::join!(
            jobs::run_job(&a, Job::Ephemeral, Duration::ZERO),
            jobs::run_job(&b, Job::Ephemeral, Duration::ZERO)
        );
        assert_eq!(runs, (Ok(()), Ok(())));
        a.cluster.state().node_count() == 2
    };
    eventually("those that are absent go", both).await;
    let deleted = deletions(&**a.cluster.store(), before).await;
    let expected: Vec<_> = nodes.iter().copied().filter(|id| ![stays.id, served].contains(id)).collect();
    assert_eq!(deleted, expected, "each once, in order");
    eventually("the other hears of it", async || b.cluster.state().node_count() == 2).await;
}

async fn nobody_is_removed_for_a_time_when_no_server_lived(database: Database) {
    let server = unstarted(&database, 1).await;
    add_ephemeral(&server.cluster, 1).await;
    let node = server.cluster.state().nodes().next().unwrap().id;
    let store = server.cluster.store();
    store.put_sessions(&[session(node.0, 2, 1, 1, true)]).await.unwrap();
    // An hour ago the last lease ended.
    let hour_ago = match database.is_sqlite() {
        true => {
            "UPDATE servers SET lease_until_ms = lease_until_ms - 3660000;
             UPDATE presence SET served_since_ms = served_since_ms - 7200000;
             UPDATE sessions SET changed_ms = changed_ms - 7200000"
        }
        false => {
            "UPDATE servers SET lease_until = lease_until - interval '1 hour';
             UPDATE presence SET served_since = served_since - interval '2 hours';
             UPDATE sessions SET changed_at = changed_at - interval '2 hours'"
        }
    };
    database.sql(hour_ago).await;
    let begun_at = Instant::now();
    store.renew_lease(&server.servers.me, LONG).await.unwrap();
    jobs::run_job(&server, Job::Ephemeral, Duration::ZERO).await.unwrap();
    if begun_at.elapsed() < Duration::from_millis(900) {
        assert_eq!(server.cluster.state().node_count(), 1, "its time begins now");
    }
    let goes = async || {
        jobs::run_job(&server, Job::Ephemeral, Duration::ZERO).await.unwrap();
        server.cluster.state().node_count() == 0
    };
    eventually("it stays away from then on", goes).await;
    // The database counts whole seconds.
    assert!(begun_at.elapsed() > Duration::from_millis(900));
}
