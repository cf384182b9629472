//! The database goes back in time: with servers that remember, and without any.

use super::{enter, rename_to, reusable, setup_key};
use crate::{
    cluster::{Actor, Node, State, remove},
    follow::Cluster,
    store::testing::{Database, eventually},
};
use proto::{map::MapVersion, receipt::Receipt};
use std::{convert::Infallible, sync::Arc};

on_both_databases!(
    what_running_servers_remember_is_put_back_in_one_new_epoch,
    a_removal_that_was_lost_is_made_again,
    servers_that_remember_nothing_learn_it_from_a_receipt,
    a_version_without_a_valid_receipt_begins_nothing,
    a_second_restore_of_one_copy_is_another_epoch,
    a_fork_that_a_server_without_memory_wrote_is_joined,
    a_database_of_another_cluster_is_not_taken_for_the_past,
    a_removal_that_an_agent_shows_is_taken_over,
);

async fn remove_node(cluster: &Cluster, node: &Node) {
    let removed = cluster.write(Actor::CommandLine, |state, now| {
        let node = state.node(node.id).expect("it entered");
        Ok::<_, Infallible>((remove(state, node, now), ()))
    });
    removed.await.unwrap();
}

/// What an agent would show that was served by a server in this state.
fn seen(state: &State) -> (MapVersion, Receipt) {
    (state.version(), state.receipt())
}

async fn what_running_servers_remember_is_put_back_in_one_new_epoch(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    let kept = enter(&a, &secret, "kept").await.unwrap();
    database.copy().await;
    rename_to(&b, kept.id, "renamed").await;
    let lost = enter(&b, &secret, "lost").await.unwrap();
    let before = b.state();
    eventually("both have seen it", async || a.state().version() == before.version()).await;
    database.restore_copy().await;
    for cluster in [&a, &b] {
        eventually("a new epoch", async || cluster.state().version().epoch > before.version().epoch).await;
        let is_back = async || cluster.state().nodes().eq(before.nodes());
        eventually("what was lost is back, as it was", is_back).await;
        assert!(cluster.state().version().revision > before.version().revision, "above every revision seen");
        assert!(cluster.state().setup_keys().eq(before.setup_keys()));
    }
    let again = enter(&b, &secret, "again").await.unwrap();
    assert!(again.address_v4 > lost.address_v4 && again.id > lost.id);
    eventually("the log goes on", async || a.state().node(again.id).is_some()).await;
    assert_eq!(a.state().head(), b.state().head(), "one epoch was begun, not two");
}

async fn a_removal_that_was_lost_is_made_again(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let gone = enter(&cluster, &secret, "gone").await.unwrap();
    database.copy().await;
    remove_node(&cluster, &gone).await;
    let removal = cluster.state().removal(&gone.key).cloned();
    let epoch = cluster.state().version().epoch;
    database.restore_copy().await;
    eventually("a new epoch", async || cluster.state().version().epoch > epoch).await;
    drop(cluster);
    let state = database.cluster().await.state();
    assert!(state.node_by_key(&gone.key).is_none());
    assert_eq!(state.removal(&gone.key).cloned(), removal);
}

/// Restores a copy while no server runs; the state that was lost, and a server that knows nothing of it.
async fn restored_without_memory(database: &Database) -> (Arc<State>, Node, Cluster) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    enter(&cluster, &secret, "kept").await.unwrap();
    database.copy().await;
    let lost = enter(&cluster, &secret, "lost").await.unwrap();
    let past = cluster.state();
    drop(cluster);
    database.restore_copy().await;
    (past, lost, database.cluster().await)
}

async fn servers_that_remember_nothing_learn_it_from_a_receipt(database: Database) {
    let (past, lost, cluster) = restored_without_memory(&database).await;
    assert!(cluster.state().version() < past.version() && cluster.state().recovery().is_none());
    let (version, receipt) = seen(&past);
    cluster.show_version(version, &receipt);
    eventually("a new epoch", async || cluster.state().version().epoch > version.epoch).await;
    assert!(cluster.state().version().revision > version.revision);
    let secret = setup_key(&cluster, &reusable()).await;
    let new = enter(&cluster, &secret, "new").await.unwrap();
    assert!(new.address_v4 != lost.address_v4 && new.id > lost.id, "what may be held is not given out");
    let head = cluster.state().head();
    cluster.show_version(version, &receipt);
    cluster.look();
    rename_to(&cluster, new.id, "newer").await;
    assert_eq!(cluster.state().version().epoch, head.version.epoch, "shown again it is no news");
}

async fn a_version_without_a_valid_receipt_begins_nothing(database: Database) {
    let (past, _, cluster) = restored_without_memory(&database).await;
    let before = cluster.state().version();
    let (version, receipt) = seen(&past);
    let further = MapVersion { revision: version.revision + 1, ..version };
    cluster.show_version(further, &receipt);
    cluster.show_version(version, &Receipt::default());
    cluster.show_version(MapVersion { epoch: u64::MAX, revision: u64::MAX }, &receipt);
    let secret = setup_key(&cluster, &reusable()).await;
    let after = cluster.state().version();
    assert_eq!(after, MapVersion { revision: before.revision + 1, ..before }, "{secret:?}");
}

async fn a_second_restore_of_one_copy_is_another_epoch(database: Database) {
    let (past, _, cluster) = restored_without_memory(&database).await;
    let (version, receipt) = seen(&past);
    cluster.show_version(version, &receipt);
    eventually("a new epoch", async || cluster.state().version().epoch > version.epoch).await;
    let (first, receipt) = seen(&cluster.state());
    drop(cluster);
    database.restore_copy().await;
    let cluster = database.cluster().await;
    cluster.show_version(first, &receipt);
    eventually("another epoch", async || cluster.state().version().epoch > first.epoch).await;
}

async fn a_fork_that_a_server_without_memory_wrote_is_joined(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    database.copy().await;
    let lost = enter(&a, &secret, "web").await.unwrap();
    eventually("both have seen it", async || b.state().version() == a.state().version()).await;
    let before = a.state().version();
    // A server that knows nothing is quicker than those that do.
    let other = lost.key;
    database.restore_copy().await;
    let fresh = database.cluster().await;
    let new = enter(&fresh, &secret, "web").await.unwrap();
    for cluster in [&a, &b, &fresh] {
        eventually("a new epoch", async || cluster.state().version().epoch > before.epoch).await;
        eventually("the lost one is back", async || cluster.state().node_by_key(&other).is_some()).await;
        eventually("the new one stays", async || cluster.state().node_by_key(&new.key).is_some()).await;
        let state = cluster.state();
        let back = state.node_by_key(&other).unwrap();
        assert!(back.name != new.name && back.id != new.id && back.address_v4 != new.address_v4);
    }
}

async fn a_database_of_another_cluster_is_not_taken_for_the_past(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    enter(&cluster, &secret, "a").await.unwrap();
    let before = cluster.state().version();
    let other_id = match &database.url {
        crate::store::DatabaseUrl::Sqlite(_) => "x'00000000000000000000000000000000'",
        crate::store::DatabaseUrl::Postgres(_) => "decode('00000000000000000000000000000000', 'hex')",
    };
    database
        .sql(&format!(
            "DELETE FROM changes WHERE revision > 1; UPDATE cluster SET revision = 1, network_id = {other_id},
             last_change = (SELECT id FROM changes)"
        ))
        .await;
    eventually("it is noticed", async || !cluster.health().database_ok).await;
    assert_eq!(cluster.state().version(), before);
    assert_eq!(cluster.store().status().await.unwrap().head.version.revision, 1, "nothing was written");
}

async fn a_removal_that_an_agent_shows_is_taken_over(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let gone = enter(&cluster, &secret, "gone").await.unwrap();
    database.copy().await;
    remove_node(&cluster, &gone).await;
    let signed = cluster.state().removal(&gone.key).unwrap().signed.clone();
    drop(cluster);
    database.restore_copy().await;
    let cluster = database.cluster().await;
    assert!(cluster.state().node_by_key(&gone.key).is_some(), "the copy has it");
    cluster.show_removal(b"nonsense");
    cluster.show_removal(&signed);
    eventually("it is out again", async || cluster.state().removal(&gone.key).is_some()).await;
    assert!(cluster.state().node_by_key(&gone.key).is_none());
}
