//! The connection itself: a pool that is full, hosts that are not there, a primary that becomes a replica, an answer that takes its time.

use super::{Lane, PostgresStore, connect::Connected, sql::query};
use crate::{
    cluster::{Actor, Op, SetupKey, SetupKeyTerms, enrol, testing::applicant},
    cluster_key::RootAccess,
    follow::{Cluster, WriteError},
    store::{CALL_TIMEOUT, DatabaseUrl, HostRole, Missing, Store, StoreError, Target, testing::Database},
};
use futures_util::future::join_all;
use proto::setup_key::SetupSecret;
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// No error may repeat it.
const PASSWORD: &str = "hunter2";
/// TCP by itself takes minutes, and Postgres waits for ever.
const BOUND: Duration = Duration::from_secs(30);

fn target(url: &DatabaseUrl) -> Target {
    let DatabaseUrl::Postgres(target) = url else { panic!("it is a Postgres") };
    Target::clone(target)
}

/// A cluster in a database of its own, over a pool of that size.
async fn pooled(database: &Database, size: usize) -> (Arc<PostgresStore>, Cluster) {
    let mut target = target(&database.url);
    target.handle_pool_size(size);
    target.handle_password(PASSWORD);
    let store = Arc::new(PostgresStore::open(&target, Missing::Create).await.unwrap());
    let cluster = Cluster::open(store.clone()).await.unwrap();
    (store, cluster)
}

async fn change(cluster: &Cluster) -> Result<(), StoreError> {
    let secret = SetupSecret::generate().unwrap();
    let written = cluster.write::<_, Infallible>(Actor::CommandLine, |state, now| {
        let (record, _) = SetupKey::new(state, now, &secret, &SetupKeyTerms::default());
        Ok((vec![Op::put_setup_key(record)], ()))
    });
    written.await.map_err(|error| match error {
        WriteError::Refused(never) => match never {},
        WriteError::Database(error) | WriteError::Unknown(error) => error,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_lane_of_its_own_does_not_wait_for_a_pool_that_is_full() {
    let database = Database::postgres().await;
    let (store, cluster) = pooled(&database, 2).await;
    let within = |span| tokio::time::Instant::now() + span;
    let held = [
        store.pools.take(Lane::Shared, within(BOUND)).await.unwrap(),
        store.pools.take(Lane::Shared, within(BOUND)).await.unwrap(),
    ];
    assert_eq!(store.connections(), Some((2, 2)));
    let third = store.pools.take(Lane::Shared, within(Duration::from_millis(200))).await;
    let Err(error) = third else { panic!("there was a third") };
    assert!(error.is_retriable() && error.to_string().contains("all 2 connections"), "{error}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
    store.tail(cluster.state().head()).await.unwrap();
    store.live_servers().await.unwrap();
    drop(held);
    let fails = async |client: &mut Connected| Ok(client.batch_execute("SELECT nonsense").await?);
    let error = store.call(Lane::Shared, fails).await.unwrap_err();
    assert!(!error.is_retriable() && error.to_string().contains("nonsense"), "{error}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
    change(&cluster).await.unwrap();
}

/// So many connections and one more fill a listener's queue on Linux.
const QUEUE: u32 = 1;

/// A listener whose queue is full: the kernel drops every further connection, as a host that is gone does.
async fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(QUEUE).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    for _ in 0..=QUEUE {
        queue.push(TcpStream::connect(addr).await.unwrap());
    }
    (listener, queue)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_a_black_hole_is_named_in_time_and_passed_over_for_another() {
    let (listener, _queue) = black_hole().await;
    let hole = listener.local_addr().unwrap();
    let begun_at = Instant::now();
    let alone = format!("postgres://me:{PASSWORD}@{hole}/mesh").parse().unwrap();
    let Err(error) = PostgresStore::open(&target(&alone), Missing::Create).await else { panic!("opened") };
    assert!(error.is_retriable() && error.to_string().contains(&hole.to_string()), "{error}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
    assert!(begun_at.elapsed() < BOUND, "{:?}", begun_at.elapsed());

    let database = Database::postgres().await;
    let beside = database.url_behind(&hole.to_string());
    let begun_at = Instant::now();
    let store = PostgresStore::open(&target(&beside), Missing::Create).await.unwrap();
    let cluster = Cluster::open(Arc::new(store)).await.unwrap();
    change(&cluster).await.unwrap();
    assert!(begun_at.elapsed() < BOUND, "{:?}", begun_at.elapsed());

    let store = cluster.store();
    assert_eq!(store.host(), Some(target(&beside).each().unwrap()[1].0.clone()));
    let states = async || store.hosts().await.into_iter().map(|host| host.state).collect::<Vec<_>>();
    assert_eq!(states().await, [HostRole::Away, HostRole::TakesWrites]);
    database.demote(true).await;
    assert_eq!(states().await, [HostRole::Away, HostRole::ReadOnly]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_may_only_read_any_more_is_replaced_by_one_that_writes() {
    let database = Database::postgres().await;
    let (store, cluster) = pooled(&database, 1).await;
    let demote = async |client: &mut Connected| {
        Ok(client.batch_execute("SET default_transaction_read_only = on").await?)
    };
    // As a primary that was demoted under its connections, of which another host took over.
    store.call(Lane::Shared, demote).await.unwrap();
    change(&cluster).await.unwrap();
    store.call(Lane::Shared, demote).await.unwrap();
    let error = store.set_moved(None).await.unwrap_err();
    assert!(error.is_read_only() && error.is_retriable(), "{error}");
    assert!(store.set_moved(None).await.unwrap(), "by another connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_host_writes_that_is_said_and_ends_with_a_promotion() {
    let database = Database::postgres().await;
    let (_store, cluster) = pooled(&database, 1).await;
    database.demote(true).await;
    let error = change(&cluster).await.unwrap_err();
    assert!(error.is_read_only() && error.to_string().contains("changes wait"), "{error}");
    database.demote(false).await;
    change(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_makes_one_connection_for_all_that_it_asks() {
    let database = Database::postgres().await;
    let server = pooled(&database, 1).await;
    let mut command = target(&database.url);
    command.config.application_name("command");
    let command = Arc::new(PostgresStore::open(&command, Missing::Refuse).await.unwrap());
    let cluster = Cluster::load(command.clone(), RootAccess::AsFound).await.unwrap();
    change(&cluster).await.unwrap();
    command.live_servers().await.unwrap();
    assert_eq!(connections(&server.0, "command").await, 1);
}

/// Those of one application to the store's database.
async fn connections(store: &PostgresStore, application: &str) -> i64 {
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
    let counted = store.call(Lane::Shared, async |client| {
        let rows = query(&**client, count, &[&application]).await?;
        Ok(rows[0].try_get(0)?)
    });
    counted.await.unwrap()
}

/// One after the other they would take the time of so many calls.
const CHANGES: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn however_many_changes_wait_for_a_lock_each_ends_in_the_time_of_one_call() {
    let database = Database::postgres().await;
    let (store, cluster) = pooled(&database, 2).await;
    let deadline = || tokio::time::Instant::now() + BOUND;
    let (mut holder, _) = store.pools.take(Lane::Reserved, deadline()).await.unwrap();
    let hold = async |client: &mut Connected| {
        let held = "SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT FROM cluster FOR UPDATE";
        Ok(client.batch_execute(held).await?)
    };
    store.pools.on(&mut holder, deadline(), hold).await.unwrap();
    let begun_at = Instant::now();
    let changes = join_all((0..CHANGES).map(|_| change(&cluster))).await;
    assert!(begun_at.elapsed() < CALL_TIMEOUT * CHANGES / 2, "{:?}", begun_at.elapsed());
    for ended in changes {
        let error = ended.unwrap_err();
        assert!(error.is_retriable(), "{error}");
    }
    drop(holder);
    change(&cluster).await.unwrap();
}

/// Nodes whose rows come one after another, each after a pause, and wide enough that Postgres sends each at once.
async fn enrol_slow_ones(database: &Database, cluster: &Cluster, count: usize, pause_s: f64) {
    let secret = SetupSecret::generate().unwrap();
    let made = cluster.write::<_, Infallible>(Actor::CommandLine, |state, now| {
        let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
        Ok((vec![Op::put_setup_key(SetupKey::new(state, now, &secret, &terms).0)], ()))
    });
    made.await.unwrap();
    for _ in 0..count {
        let applicant = applicant(&secret, "web");
        cluster.write(Actor::CommandLine, |state, now| enrol(state, now, &applicant)).await.unwrap();
    }
    let slow = format!(
        "ALTER TABLE nodes RENAME TO rows;
         CREATE FUNCTION slow(content jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$ BEGIN
             PERFORM pg_sleep({pause_s}); RETURN content || jsonb_build_object('wide', repeat('x', 20000)); END $$;
         CREATE VIEW nodes AS SELECT id, slow(content) AS content FROM rows ORDER BY id"
    );
    database.sql(&slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_state_may_take_longer_than_a_call_as_long_as_it_comes() {
    let (coming, stuck) = (Database::postgres().await, Database::postgres().await);
    let (comes, sticks) = (pooled(&coming, 1).await, pooled(&stuck, 1).await);
    enrol_slow_ones(&coming, &comes.1, 4, 1.5).await;
    enrol_slow_ones(&stuck, &sticks.1, 1, 60.0).await;
    let begun_at = Instant::now();
    let stuck = async { (sticks.0.snapshot().await, begun_at.elapsed()) };
    let (read, (given_up, after)) = tokio::join!(comes.0.snapshot(), stuck);
    assert_eq!(read.unwrap().nodes.len(), 4);
    assert!(begun_at.elapsed() > CALL_TIMEOUT, "it was slow");
    let given_up = given_up.unwrap_err();
    assert!(given_up.is_retriable() && after < BOUND, "{given_up} after {after:?}");
}
