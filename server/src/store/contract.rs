//! What both databases do alike: every test here runs on a SQLite file and on a private Postgres (with fsync on).

use crate::{
    cluster::{
        Actor, Change, ChangeId, Head, Node, Refusal, SetupKey, SetupKeyTerms, enrol, remove, rename,
        set_membership_lifetime, testing::applicant,
    },
    follow::{Cluster, WriteError},
    store::{
        self, Lost, Missing, StoreError, Tail,
        testing::{Database, eventually},
    },
};
use proto::{map::MapVersion, setup_key::SetupSecret, statement::NodeId};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    time::{Duration, Instant},
};

macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            use crate::store::testing::Database;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(Database::sqlite()).await;
                }
            )*
        }
        mod postgres {
            use crate::store::testing::Database;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(Database::postgres().await).await;
                }
            )*
        }
    };
}

mod holders;
mod jobs;
mod live;
mod recovery;
mod roots;
mod vault;

on_both_databases!(
    of_two_first_starts_at_once_one_makes_the_root,
    a_change_on_one_server_reaches_the_other_in_time,
    fifty_enrolments_at_once_over_two_servers_are_fifty_nodes,
    a_one_off_key_lets_in_one_of_many_who_come_at_once,
    one_node_key_on_two_servers_at_once_is_one_node,
    who_asks_how_the_log_stands_does_not_wait_for_the_poll,
    a_refused_write_changes_nothing_and_leaves_the_log_free,
    a_lock_that_is_dropped_is_undone,
    a_cluster_opened_again_is_the_same,
    settings_are_kept_once_set_and_the_last_ones_hold,
    a_newer_schema_is_refused,
    an_older_schema_is_brought_up_to_date_by_a_server_and_no_command,
    numbers_out_of_range_are_refused,
    a_command_makes_no_cluster,
    a_follower_that_the_log_has_left_behind_loads_everything,
    status_tells_what_it_is,
);

fn reusable() -> SetupKeyTerms {
    SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() }
}

async fn setup_key(cluster: &Cluster, terms: &SetupKeyTerms) -> SetupSecret {
    let secret = SetupSecret::generate().unwrap();
    let written = cluster.write(Actor::CommandLine, |state, now| {
        let (record, _) = SetupKey::new(state, now, &secret, terms);
        Ok::<_, Infallible>((vec![crate::cluster::Op::put_setup_key(record)], ()))
    });
    written.await.unwrap();
    secret
}

async fn enter(cluster: &Cluster, secret: &SetupSecret, hostname: &str) -> Result<Node, WriteError<Refusal>> {
    let applicant = applicant(secret, hostname);
    cluster.write(Actor::CommandLine, |state, now| enrol(state, now, &applicant)).await
}

async fn rename_to(cluster: &Cluster, node: NodeId, name: &str) {
    let renamed = cluster.write(Actor::CommandLine, |state, now| {
        let node = state.node(node).expect("the test made it");
        rename(state, node, name, now).map(|ops| (ops, ()))
    });
    renamed.await.unwrap();
}

async fn of_two_first_starts_at_once_one_makes_the_root(database: Database) {
    let (a, b) = tokio::join!(database.cluster(), database.cluster());
    let (a, b) = (a.state(), b.state());
    assert_eq!(a.root.public(), b.root.public());
    assert_eq!(a.network_id, b.network_id);
    assert_eq!(a.network, b.network);
    assert_eq!(a.version(), MapVersion { epoch: 1, revision: 1 });
    assert_eq!(a.head(), b.head());
}

async fn a_change_on_one_server_reaches_the_other_in_time(database: Database) {
    const ROUNDS: usize = 100;
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    let node = enter(&a, &secret, "first").await.unwrap();
    let mut changed = b.changed();
    let mut latencies = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("name-{round}");
        let begun_at = Instant::now();
        rename_to(&a, node.id, &name).await;
        let reached = changed.wait_for(|version| *version >= a.state().version());
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("it arrives").unwrap();
        latencies.push(begun_at.elapsed());
        assert_eq!(b.state().node(node.id).unwrap().name, name);
    }
    latencies.sort();
    let (p50, p99, worst) = (latencies[ROUNDS / 2], latencies[ROUNDS * 99 / 100 - 1], latencies[ROUNDS - 1]);
    println!("{}: a change reaches another server: p50 {p50:?}, p99 {p99:?}, worst {worst:?}", database.url);
    assert!(p99 <= database.reach(), "p99 {p99:?} of at most {:?}", database.reach());
}

async fn fifty_enrolments_at_once_over_two_servers_are_fifty_nodes(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    let tasks: Vec<_> = (0..50)
        .map(|number| {
            let (cluster, secret) = (if number % 2 == 0 { a.clone() } else { b.clone() }, secret.clone());
            tokio::spawn(async move { enter(&cluster, &secret, "host").await.unwrap() })
        })
        .collect();
    let mut nodes = Vec::new();
    for task in tasks {
        nodes.push(task.await.unwrap());
    }
    let count = |set: BTreeSet<String>| set.len();
    assert_eq!(count(nodes.iter().map(|node| node.id.to_string()).collect()), 50);
    assert_eq!(count(nodes.iter().map(|node| node.address_v4.to_string()).collect()), 50);
    assert_eq!(count(nodes.iter().map(|node| node.address_v6.to_string()).collect()), 50);
    assert_eq!(count(nodes.iter().map(|node| node.name.clone()).collect()), 50);
    for cluster in [&a, &b] {
        eventually("both servers know all fifty", async || cluster.state().node_count() == 50).await;
        assert_eq!(cluster.state().setup_key_by_hash(&secret.hash()).unwrap().uses, 50);
    }
}

async fn a_one_off_key_lets_in_one_of_many_who_come_at_once(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &SetupKeyTerms::default()).await;
    let tasks: Vec<_> = (0..10)
        .map(|number| {
            let (cluster, secret) = (if number % 2 == 0 { a.clone() } else { b.clone() }, secret.clone());
            tokio::spawn(async move { enter(&cluster, &secret, "host").await })
        })
        .collect();
    let mut entered = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => entered += 1,
            Err(error) => assert_eq!(error, WriteError::Refused(Refusal::KeyUsed)),
        }
    }
    assert_eq!(entered, 1);
}

async fn one_node_key_on_two_servers_at_once_is_one_node(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &SetupKeyTerms::default()).await;
    let applicant = applicant(&secret, "host");
    let (one, other) = tokio::join!(
        a.write(Actor::CommandLine, |state, now| enrol(state, now, &applicant)),
        b.write(Actor::CommandLine, |state, now| enrol(state, now, &applicant)),
    );
    assert_eq!(one.unwrap(), other.unwrap(), "both are told the same, and the one-off key is not burnt");
    eventually("one node", async || a.state().node_count() == 1 && b.state().node_count() == 1).await;
}

async fn who_asks_how_the_log_stands_does_not_wait_for_the_poll(database: Database) {
    let cluster = database.cluster().await;
    let begun_at = Instant::now();
    for _ in 0..5 {
        let asked_at = Instant::now();
        cluster.look();
        eventually("it was looked at", async || cluster.health().level_age < asked_at.elapsed()).await;
    }
    assert!(begun_at.elapsed() < Duration::from_secs(2), "five polls take five seconds");
}

async fn a_refused_write_changes_nothing_and_leaves_the_log_free(database: Database) {
    let cluster = database.cluster().await;
    let before = cluster.state().head();
    let refused = cluster.write(Actor::CommandLine, |_, _| Err::<(Vec<_>, ()), _>("no"));
    assert_eq!(refused.await, Err(WriteError::Refused("no")));
    let nothing = cluster.write(Actor::CommandLine, |_, _| Ok::<_, Infallible>((vec![], "nothing to do")));
    assert_eq!(nothing.await, Ok("nothing to do"));
    assert_eq!(cluster.store().status().await.unwrap().head, before);
    setup_key(&cluster, &reusable()).await;
    assert_eq!(cluster.state().version().revision, before.version.revision + 1);
}

async fn a_lock_that_is_dropped_is_undone(database: Database) {
    let cluster = database.cluster().await;
    let locked = cluster.store().lock(cluster.state().head()).await.unwrap();
    assert_eq!(locked.tail(), &Tail::Changes(vec![]));
    drop(locked);
    setup_key(&cluster, &reusable()).await;
}

async fn a_cluster_opened_again_is_the_same(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let first = enter(&cluster, &secret, "a").await.unwrap();
    enter(&cluster, &secret, "b").await.unwrap();
    let removed = cluster.write(Actor::CommandLine, |state, now| {
        let node = state.node(first.id).expect("it entered");
        Ok::<_, Infallible>((remove(state, node, now), ()))
    });
    removed.await.unwrap();
    let before = cluster.state();
    drop(cluster);
    let after = database.cluster().await.state();
    assert_eq!(after.head(), before.head());
    assert_eq!(after.root.public(), before.root.public());
    assert!(after.nodes().eq(before.nodes()));
    assert!(after.setup_keys().eq(before.setup_keys()));
    assert!(after.removals().eq(before.removals()));
    assert_eq!(after.next_node_id(), before.next_node_id());
}

async fn settings_are_kept_once_set_and_the_last_ones_hold(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    assert_eq!(a.store().snapshot().await.unwrap().settings, None);
    for lifetime in [Some(Duration::from_secs(3600)), None, Some(Duration::from_secs(7200))] {
        let set = a.write(Actor::CommandLine, |state, now| {
            set_membership_lifetime(state, lifetime, now).map(|ops| (ops, ()))
        });
        set.await.unwrap();
        let stored = a.store().snapshot().await.unwrap().settings.expect("they were set");
        assert_eq!(stored, *a.state().settings());
        assert_eq!(stored.membership_lifetime(), lifetime);
        eventually("the other server has them", async || *b.state().settings() == stored).await;
    }
}

async fn a_newer_schema_is_refused(database: Database) {
    drop(database.open().await);
    let newest = "SELECT max(version) FROM refinery_schema_history";
    database
        .sql(&format!("UPDATE refinery_schema_history SET version = 99 WHERE version = ({newest})"))
        .await;
    let Err(error) = store::open(&database.url, Missing::Create).await else { panic!("it was opened") };
    assert!(matches!(&error, StoreError::NewerSchema { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("update this server"), "{error}");
}

async fn an_older_schema_is_brought_up_to_date_by_a_server_and_no_command(database: Database) {
    drop(database.cluster().await);
    database.sql("DELETE FROM refinery_schema_history WHERE version > 1").await;
    let Err(error) = store::open(&database.url, Missing::Refuse).await else { panic!("it was opened") };
    assert!(matches!(&error, StoreError::OlderSchema { found: 1, .. }), "{error}");
    assert!(error.to_string().contains("start a server"), "{error}");
}

async fn numbers_out_of_range_are_refused(database: Database) {
    let store = database.cluster().await.store().clone();
    database.sql(&format!("UPDATE cluster SET next_node_id = {}", i64::MAX)).await;
    let error = store.snapshot().await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { .. }), "{error}");
}

async fn a_command_makes_no_cluster(database: Database) {
    let Err(error) = store::open(&database.url, Missing::Refuse).await else { panic!("it was opened") };
    assert!(matches!(&error, StoreError::NoCluster { .. }), "{error}");
    drop(database.cluster().await);
    assert!(store::open(&database.url, Missing::Refuse).await.is_ok());
}

async fn a_follower_that_the_log_has_left_behind_loads_everything(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let old = a.state().head();
    let secret = setup_key(&a, &reusable()).await;
    enter(&a, &secret, "a").await.unwrap();
    let newest = a.state().version().revision;
    assert!(
        matches!(a.store().tail(old).await.unwrap(), Tail::Changes(changes) if changes.len() as u64 == newest - 1)
    );
    database.sql(&format!("DELETE FROM changes WHERE revision < {newest}")).await;
    assert_eq!(a.store().tail(old).await.unwrap(), Tail::Lost(Lost::Pruned));
    eventually("the other has it all", async || b.state().version().revision == newest).await;
    assert_eq!(b.state().version().epoch, 1, "nothing went back");
}

async fn status_tells_what_it_is(database: Database) {
    let cluster = database.cluster().await;
    let status = cluster.store().status().await.unwrap();
    assert_eq!(status.head, cluster.state().head());
    assert!(status.schema >= 3, "{}", status.schema);
    assert_eq!(database.url.to_string(), status.location);
    assert!(!status.version.is_empty() && status.location.starts_with(status.kind));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_at_a_revision_that_exists_is_refused() {
    for database in [Database::sqlite(), Database::postgres().await] {
        let cluster = database.cluster().await;
        let head = cluster.state().head();
        let locked = cluster.store().lock(head).await.unwrap();
        let again = Head { id: ChangeId([9; 16]), ..head };
        let change = Change { head: again, at: locked.now(), actor: Actor::CommandLine, ops: vec![] };
        assert!(matches!(locked.commit(&change).await, Err(StoreError::Failed { .. })));
        setup_key(&cluster, &reusable()).await;
    }
}

#[tokio::test]
async fn an_unreachable_postgres_is_an_error_without_its_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("postgres://me:hunter2@127.0.0.1:{port}/mesh").parse().unwrap();
    let Err(error) = store::open(&url, Missing::Create).await else { panic!("it was opened") };
    assert!(error.is_retriable(), "{error}");
    let text = format!("{error} {error:?} {url} {url:?}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains(&format!("me@127.0.0.1:{port}/mesh")), "{text}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "not a database, and long enough to have been read as the header of one").unwrap();
    let url = store::DatabaseUrl::Sqlite(path.clone());
    let Err(error) = store::open(&url, Missing::Create).await else { panic!("it was opened") };
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(std::fs::read_to_string(path).unwrap().starts_with("not a database"));
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let database = Database::sqlite();
    let _cluster = database.cluster().await;
    let store::DatabaseUrl::Sqlite(path) = &database.url else { panic!("it is a file") };
    for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{file:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_in_order_the_whole_database_is_one_file() {
    let database = Database::sqlite();
    let cluster = database.cluster().await;
    setup_key(&cluster, &reusable()).await;
    let store::DatabaseUrl::Sqlite(path) = &database.url else { panic!("it is a file") };
    drop(cluster);
    let wal = path.with_extension("db-wal");
    eventually("the write-ahead log is gone", async || !wal.exists()).await;
    assert_eq!(database.cluster().await.state().setup_keys().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_is_served_from_memory_and_back_is_caught_up_with() {
    let database = Database::postgres().await;
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    let node = enter(&a, &secret, "a").await.unwrap();
    eventually("both know it", async || b.state().node(node.id).is_some()).await;
    database.cut_off(true).await;
    eventually("it is noticed", async || !a.health().database_ok && !b.health().database_ok).await;
    assert!(b.state().node(node.id).is_some(), "the state is still there");
    let error = enter(&a, &secret, "b").await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    database.cut_off(false).await;
    eventually("it is back", async || a.health().database_ok && b.health().database_ok).await;
    let later = enter(&b, &secret, "b").await.unwrap();
    eventually("the other catches up", async || a.state().node(later.id).is_some()).await;
    assert!(a.health().level_age < Duration::from_secs(5));
}
