//! What is beside the log: leases, presence, signals.

use super::{enter, reusable, setup_key};
use crate::{
    cluster::{Actor, remove},
    settings::Settings,
    store::{
        self, Degraded, HealthReport, Hint, Incarnation, ServerReport, ServerRow, SessionRow,
        testing::{Database, eventually},
    },
};
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

on_both_databases!(
    a_lease_ends_by_the_clock_of_the_database,
    a_session_is_replaced_by_a_newer_number_only,
    a_seat_that_nobody_holds_is_free_for_any_number,
    a_session_said_again_is_no_news,
    nobody_sits_where_there_is_no_node,
    presence_is_read_from_where_one_stopped,
    a_removed_node_takes_its_presence_along,
    signals_are_taken_once_in_order_and_not_when_old,
    another_server_is_woken,
    an_address_that_cannot_be_read_hides_no_server,
    what_a_server_says_of_itself_is_renewed_with_its_lease,
);

/// Nodes with the numbers of sessions, without a cluster around them.
pub(super) async fn add_nodes(database: &Database, ids: std::ops::Range<u64>) {
    for id in ids {
        let columns = "id, node_key, name, address_v4, address_v6, content";
        let values = format!("{id}, 'k{id}', 'n{id}', '4-{id}', '6-{id}', '{{}}'");
        database.sql(&format!("INSERT INTO nodes ({columns}) VALUES ({values})")).await;
    }
}

pub(super) fn server(id: u8) -> ServerRow {
    ServerRow {
        id: ServerId([id; 16]),
        incarnation: Incarnation([id; 16]),
        name: format!("server-{id}"),
        host: format!("host-{id}"),
        urls: vec![format!("192.0.2.{id}:7443").parse().unwrap()],
        version: "0.1.0".to_owned(),
        clock_ahead_ms: 0,
        report: ServerReport::default(),
    }
}

pub(super) fn session(node: u64, server: u8, boot: u64, counter: u64, online: bool) -> SessionRow {
    let number = SessionNumber { boot, counter };
    SessionRow { node: NodeId(node), server: ServerId([server; 16]), number, online }
}

async fn a_lease_ends_by_the_clock_of_the_database(database: Database) {
    let store = database.open().await;
    const TTL: Duration = Duration::from_millis(300);
    let begun_at = Instant::now();
    store.renew_lease(&server(1), TTL).await.unwrap();
    store.renew_lease(&server(2), Duration::from_secs(60)).await.unwrap();
    let live = store.live_servers().await.unwrap();
    assert_eq!(live.last().unwrap().server, server(2));
    assert!(live.iter().all(|live| live.lease_remaining <= Duration::from_secs(60)));
    let one_is_left = async || store.live_servers().await.unwrap().len() == 1;
    eventually("the short lease ends", one_is_left).await;
    // The clock of a database may count in milliseconds.
    assert!(begun_at.elapsed() + Duration::from_millis(1) >= TTL);
    store.renew_lease(&server(1), Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.live_servers().await.unwrap().len(), 2);
    store.release_lease(&server(1)).await.unwrap();
    let names: Vec<_> =
        store.live_servers().await.unwrap().into_iter().map(|live| live.server.name).collect();
    assert_eq!(names, ["server-2"]);
}

async fn a_session_is_replaced_by_a_newer_number_only(database: Database) {
    let store = database.open().await;
    add_nodes(&database, 7..8).await;
    for id in [1, 2] {
        store.renew_lease(&server(id), Duration::from_secs(60)).await.unwrap();
    }
    for (written, standing) in [
        (session(7, 1, 1, 5, true), session(7, 1, 1, 5, true)),
        // An older one, and another server's of the same number, come late.
        (session(7, 2, 1, 4, true), session(7, 1, 1, 5, true)),
        (session(7, 2, 1, 5, false), session(7, 1, 1, 5, true)),
        (session(7, 1, 1, 5, false), session(7, 1, 1, 5, false)),
        (session(7, 2, 1, 6, true), session(7, 2, 1, 6, true)),
        // The server that had it before ends only its own.
        (session(7, 1, 1, 5, false), session(7, 2, 1, 6, true)),
        (session(7, 1, 2, 0, true), session(7, 1, 2, 0, true)),
    ] {
        store.put_sessions(&[written]).await.unwrap();
        let (rows, _) = store.sessions(0).await.unwrap();
        assert_eq!(rows.iter().map(|seen| seen.row).collect::<Vec<_>>(), [standing], "after {written:?}");
    }
    let (rows, _) = store.sessions(0).await.unwrap();
    assert!(rows[0].is_online());
    store.release_lease(&server(1)).await.unwrap();
    let (rows, _) = store.sessions(0).await.unwrap();
    assert!(rows[0].row.online && !rows[0].is_online(), "online counts only while its server lives");
}

async fn a_seat_that_nobody_holds_is_free_for_any_number(database: Database) {
    let store = database.open().await;
    add_nodes(&database, 7..8).await;
    for id in [1, 2] {
        store.renew_lease(&server(id), Duration::from_secs(60)).await.unwrap();
    }
    let standing = async || store.sessions(0).await.unwrap().0[0].row;
    let (newer, older) = (session(7, 1, 5, 5, true), session(7, 2, 1, 1, true));
    store.put_sessions(&[newer]).await.unwrap();
    store.put_sessions(&[older]).await.unwrap();
    assert_eq!(standing().await, newer, "its server lives and serves");
    store.put_sessions(&[SessionRow { online: false, ..newer }]).await.unwrap();
    store.put_sessions(&[older]).await.unwrap();
    assert_eq!(standing().await, older, "it was offline");
    store.put_sessions(&[newer]).await.unwrap();
    store.release_lease(&server(1)).await.unwrap();
    store.put_sessions(&[SessionRow { online: false, ..older }]).await.unwrap();
    assert_eq!(standing().await, newer, "who is not there takes no seat");
    store.put_sessions(&[older]).await.unwrap();
    assert_eq!(standing().await, older, "its server is gone");
}

async fn a_session_said_again_is_no_news(database: Database) {
    let store = database.open().await;
    add_nodes(&database, 7..8).await;
    store.put_sessions(&[session(7, 1, 1, 1, true)]).await.unwrap();
    let (_, read_to) = store.sessions(0).await.unwrap();
    store.put_sessions(&[session(7, 1, 1, 1, true)]).await.unwrap();
    assert_eq!(store.sessions(read_to).await.unwrap(), (vec![], read_to));
}

async fn nobody_sits_where_there_is_no_node(database: Database) {
    let store = database.open().await;
    add_nodes(&database, 7..8).await;
    store.put_sessions(&[session(6, 1, 1, 1, true), session(7, 1, 1, 1, true)]).await.unwrap();
    let (rows, _) = store.sessions(0).await.unwrap();
    assert_eq!(rows.iter().map(|seen| seen.row.node).collect::<Vec<_>>(), [NodeId(7)]);
}

async fn presence_is_read_from_where_one_stopped(database: Database) {
    let store = database.open().await;
    add_nodes(&database, 0..3).await;
    let batch: Vec<_> = (0..3).map(|node| session(node, 1, 1, 1, true)).collect();
    store.put_sessions(&batch).await.unwrap();
    let (rows, read_to) = store.sessions(0).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(store.sessions(read_to).await.unwrap(), (vec![], read_to));
    // Twice in one batch: the later counts.
    store.put_sessions(&[session(1, 1, 1, 2, true), session(1, 1, 1, 2, false)]).await.unwrap();
    let (rows, _) = store.sessions(read_to).await.unwrap();
    assert_eq!(rows.iter().map(|seen| seen.row).collect::<Vec<_>>(), [session(1, 1, 1, 2, false)]);
    assert!(rows.iter().all(|seen| seen.sequence > read_to));
}

async fn a_removed_node_takes_its_presence_along(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let node = enter(&cluster, &secret, "a").await.unwrap();
    cluster.store().put_sessions(&[session(node.id.0, 1, 1, 1, true)]).await.unwrap();
    let removed = cluster.write(Actor::CommandLine, |state, now| {
        let node = state.node(node.id).expect("it entered");
        Ok::<_, Infallible>((remove(state, node, now), ()))
    });
    removed.await.unwrap();
    assert!(cluster.store().sessions(0).await.unwrap().0.is_empty());
}

async fn signals_are_taken_once_in_order_and_not_when_old(database: Database) {
    let store = database.open().await;
    let (me, other) = (ServerId([1; 16]), ServerId([2; 16]));
    let signals: Vec<_> = (0..20u8).map(|n| (if n % 2 == 0 { me } else { other }, vec![n])).collect();
    store.send_signals(&signals).await.unwrap();
    store.send_signals(&[(me, vec![100])]).await.unwrap();
    let mine: Vec<u8> = store.take_signals(me).await.unwrap().concat();
    assert_eq!(mine, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 100]);
    assert!(store.take_signals(me).await.unwrap().is_empty());
    database
        .sql(match &database.url {
            store::DatabaseUrl::Sqlite(_) => "UPDATE signals SET sent_ms = sent_ms - 11000",
            store::DatabaseUrl::Postgres(_) => "UPDATE signals SET sent_at = sent_at - interval '11 seconds'",
        })
        .await;
    assert!(store.take_signals(other).await.unwrap().is_empty(), "they are of no use any more");
}

async fn another_server_is_woken(database: Database) {
    let (mine, theirs) = (database.open().await, database.open().await);
    let me = ServerId([1; 16]);
    let mut hints = mine.wake();
    let wakes = |hint: &Hint| matches!(hint, Hint::Anything | Hint::Signals(_));
    // What was said before we listened may be missed, so it is said until it is heard.
    let heard = async {
        loop {
            theirs.send_signals(&[(me, vec![1])]).await.unwrap();
            let hint = tokio::time::timeout(Duration::from_millis(100), hints.recv()).await;
            if hint.is_ok_and(|hint| wakes(&hint.unwrap()))
                && !mine.take_signals(me).await.unwrap().is_empty()
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard).await.expect("it is woken");
}

async fn what_a_server_says_of_itself_is_renewed_with_its_lease(database: Database) {
    let store = database.open().await;
    let long = Duration::from_secs(60);
    let degraded =
        Degraded { what: "from-the-future".to_owned(), since_unix_s: 7, reason: "it's so".to_owned() };
    let health = HealthReport { log_age_ms: 9, degraded: vec![degraded], ..HealthReport::default() };
    let settings = Some(Settings { max_nodes: Some(3), ..Settings::default() }.shared());
    for report in [
        ServerReport::default(),
        ServerReport { settings, health: Some(health) },
        ServerReport { settings, health: None },
    ] {
        let row = ServerRow { report, ..server(1) };
        store.renew_lease(&row, long).await.unwrap();
        assert_eq!(store.live_servers().await.unwrap()[0].server, row);
    }
    for (stored, readable) in [("[7]", None), (r#"{"settings": null, "mood": 1}"#, None)] {
        database.sql(&format!("UPDATE servers SET report = '{stored}'")).await;
        assert_eq!(store.live_servers().await.unwrap()[0].server.report.settings, readable);
    }
}

async fn an_address_that_cannot_be_read_hides_no_server(database: Database) {
    let store = database.open().await;
    for id in [1, 2] {
        store.renew_lease(&server(id), Duration::from_secs(60)).await.unwrap();
    }
    let urls = r#"["gopher:/x:y:z", 7, "192.0.2.9:7443"]"#;
    database.sql(&format!("UPDATE servers SET urls = '{urls}' WHERE name = 'server-1'")).await;
    let live = store.live_servers().await.unwrap();
    let urls: Vec<_> = live.iter().flat_map(|live| &live.server.urls).map(ToString::to_string).collect();
    assert_eq!(urls, ["192.0.2.9:7443", "192.0.2.2:7443"]);
}
