//! Changes of the root, on both databases.

use super::{enter, reusable, setup_key};
use crate::{
    backup,
    cluster::{
        self, Actor, Change, ChangeId, Head, RetirementError, RotationError, StoredRoot, confirm, retire,
        sign_anew,
    },
    cluster_key::{ClusterKey, RootAccess},
    follow::{Cluster, WriteError},
    store::{
        Erased, Imported, Occupied,
        testing::{Database, eventually},
    },
};
use proto::{map::MapVersion, root::RootSecret, time::UnixTime};
use std::convert::Infallible;

on_both_databases!(
    a_new_root_reaches_every_server_with_its_secret_and_none_is_restarted,
    of_two_who_change_the_root_at_once_one_does_it,
    a_wrapped_root_is_followed_by_a_wrapped_one,
    a_root_whose_change_was_not_committed_is_not_there,
    a_former_root_is_erased_from_the_file_by_whoever_comes_after_one_that_was_killed,
    a_cluster_opened_or_restored_between_change_and_retirement_trusts_both_roots,
    a_change_of_the_root_that_the_database_lost_is_put_back,
    a_retirement_that_the_database_lost_is_put_back,
    another_root_in_the_place_of_a_known_one_is_told_and_nothing_under_it_is_put_back,
);

async fn rotate(cluster: &Cluster) {
    let root = cluster.state().root.public();
    cluster.rotate_root(&root, true).await.unwrap();
}

async fn sign_all_anew(cluster: &Cluster) {
    let signed =
        cluster.write(Actor::CommandLine, |state, _| Ok::<_, Infallible>((sign_anew(state, 100), ())));
    signed.await.unwrap();
}

async fn a_new_root_reaches_every_server_with_its_secret_and_none_is_restarted(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let secret = setup_key(&a, &reusable()).await;
    let before = enter(&a, &secret, "before").await.unwrap();
    let old = a.state().root.public();
    rotate(&a).await;
    let new = a.state().root.public();
    assert_ne!(new, old);
    eventually("it follows", async || b.state().root.public() == new).await;
    assert!(b.state().root.secret().is_some(), "it signs");
    let after = enter(&b, &secret, "after").await.unwrap();
    let again = enter(&a, &secret, "again").await.unwrap();
    for (node, root) in [(&before, 0), (&after, 1), (&again, 1)] {
        assert_eq!(b.state().verify(&node.membership).unwrap().1, root);
        assert_eq!(node.root, root);
    }
    assert_eq!(a.store().snapshot().await.unwrap().founding.root.public(), new);
    sign_all_anew(&b).await;
    let error = b.write(Actor::CommandLine, |state, _| Ok((retire(state, false)?, ()))).await.unwrap_err();
    let WriteError::Refused(RetirementError::Unconfirmed { count: 1, names }) = error else {
        panic!("{error}")
    };
    assert_eq!(names, "before");
    let confirmed = b.write(Actor::CommandLine, |state, _| {
        let node = state.node(before.id).and_then(|node| confirm(state, node, new.fingerprint()));
        Ok::<_, Infallible>((node.map(cluster::Op::put_node).into_iter().collect(), ()))
    });
    confirmed.await.unwrap();
    b.write(Actor::CommandLine, |state, _| Ok::<_, RetirementError>((retire(state, false)?, ())))
        .await
        .unwrap();
    eventually("retired", async || a.state().roots().is_some_and(|roots| roots.former.is_empty())).await;
    assert!(a.state().verify(&before.membership).is_err());
    assert_eq!(a.state().root_number(), 1);
}

async fn of_two_who_change_the_root_at_once_one_does_it(database: Database) {
    let (a, b) = (database.cluster().await, database.cluster().await);
    let root = a.state().root.public();
    let (one, other) = tokio::join!(a.rotate_root(&root, true), b.rotate_root(&root, true));
    let refused = match (one, other) {
        (Ok(()), Err(refused)) | (Err(refused), Ok(())) => refused,
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, WriteError::Refused(RotationError::Changed)), "{refused}");
    eventually("level", async || a.state().root.public() == b.state().root.public()).await;
    assert_eq!(a.state().root_number(), 1);
}

async fn a_wrapped_root_is_followed_by_a_wrapped_one(database: Database) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cluster.key");
    ClusterKey::create(&path).unwrap();
    let with_key = RootAccess::Sign(Some(ClusterKey::read(&path).unwrap()));
    let a = Cluster::open_with(database.open().await, with_key.clone()).await.unwrap();
    let b = Cluster::open_with(database.open().await, with_key).await.unwrap();
    rotate(&a).await;
    let stored = a.store().snapshot().await.unwrap().founding.root;
    assert!(stored.is_wrapped());
    assert_eq!(stored.public(), a.state().root.public());
    eventually("it opens it", async || b.state().root.secret().is_some() && b.state().root_number() == 1)
        .await;
    let command = Cluster::load(database.open().await, RootAccess::AsFound).await.unwrap();
    let root = command.state().root.public();
    let error = command.rotate_root(&root, true).await.unwrap_err().to_string();
    assert!(error.contains("--cluster-key"), "{error}");
}

async fn a_root_whose_change_was_not_committed_is_not_there(database: Database) {
    let cluster = database.cluster().await;
    let mut locked = cluster.store().lock(cluster.state().head()).await.unwrap();
    locked.put_root(&StoredRoot::Plain(RootSecret::from_seed(&[3; 32]))).await.unwrap();
    drop(locked);
    let found = cluster.store().snapshot().await.unwrap().founding.root;
    assert_eq!(found.public(), cluster.state().root.public());
}

/// Up to the commit, and no further.
async fn rotate_and_die(cluster: &Cluster, database: &Database) {
    let (store, state) = (database.open().await, cluster.state());
    let (next, version) = (RootSecret::generate().unwrap(), state.version());
    let mut locked = store.lock(state.head()).await.unwrap();
    locked.put_root(&StoredRoot::Plain(next.clone())).await.unwrap();
    let change = Change {
        head: Head {
            version: MapVersion { revision: version.revision + 1, ..version },
            id: ChangeId([9; 16]),
        },
        at: locked.now(),
        actor: Actor::CommandLine,
        ops: cluster::rotate(&state, &next, locked.now(), true).unwrap(),
    };
    locked.commit(&change).await.unwrap();
}

async fn a_former_root_is_erased_from_the_file_by_whoever_comes_after_one_that_was_killed(
    database: Database,
) {
    let cluster = database.cluster().await;
    assert_eq!(cluster.store().erase_former_root().await, Ok(Erased::Before));
    rotate(&cluster).await;
    assert_eq!(cluster.store().erase_former_root().await, Ok(Erased::Before), "whoever rotates does it");
    let former = cluster.state().root.secret().unwrap().clone();
    rotate_and_die(&cluster, &database).await;
    let store = database.open().await;
    assert!(database.file_holds(former.expose()).await, "nobody has erased it");
    assert_eq!(store.erase_former_root().await, Ok(Erased::Now));
    assert_eq!(store.erase_former_root().await, Ok(Erased::Before));
    assert!(!database.file_holds(former.expose()).await, "it is gone");
}

async fn a_cluster_opened_or_restored_between_change_and_retirement_trusts_both_roots(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let node = enter(&cluster, &secret, "a").await.unwrap();
    let receipt = (cluster.state().version(), cluster.state().receipt());
    rotate(&cluster).await;
    let again = database.cluster().await;
    assert_eq!(again.state().roots(), cluster.state().roots());
    assert!(again.state().verify(&node.membership).is_ok());
    assert!(again.state().is_proved(receipt.0, &receipt.1));
    let snapshot = cluster.store().snapshot().await.unwrap();
    let mut file = Vec::new();
    backup::write(&snapshot, UnixTime(7), &mut file).unwrap();
    let restored = backup::read(file.as_slice()).unwrap().snapshot;
    assert_eq!(restored.roots, snapshot.roots);
    let other = Database::sqlite();
    let imported = other.open().await.import(&restored, Occupied::Refuse).await;
    assert_eq!(imported, Ok(Imported::Done));
    let moved = other.cluster().await;
    assert!(moved.state().verify(&node.membership).is_ok());
    assert_eq!(moved.state().roots(), cluster.state().roots());
}

async fn a_change_of_the_root_that_the_database_lost_is_put_back(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    enter(&cluster, &secret, "a").await.unwrap();
    database.copy().await;
    rotate(&cluster).await;
    let new = cluster.state().root.public();
    let lost = enter(&cluster, &secret, "lost").await.unwrap();
    database.restore_copy().await;
    eventually("it is put back", async || {
        let state = cluster.state();
        state.recovery().is_some() && state.root.public() == new && state.node_by_key(&lost.key).is_some()
    })
    .await;
    let found = cluster.store().snapshot().await.unwrap();
    assert_eq!(found.founding.root.public(), new);
    assert!(cluster.state().verify(&lost.membership).is_ok());
}

async fn a_retirement_that_the_database_lost_is_put_back(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let node = enter(&cluster, &secret, "a").await.unwrap();
    rotate(&cluster).await;
    database.copy().await;
    sign_all_anew(&cluster).await;
    let retired =
        cluster.write(Actor::CommandLine, |state, _| Ok::<_, RetirementError>((retire(state, true)?, ())));
    retired.await.unwrap();
    database.restore_copy().await;
    eventually("it is put back", async || {
        let state = cluster.state();
        state.recovery().is_some() && state.roots().is_some_and(|roots| roots.former.is_empty())
    })
    .await;
    let state = cluster.state();
    assert_eq!((state.under_former_roots(), state.root_number()), (0, 1));
    assert!(state.verify(&state.node(node.id).unwrap().membership).is_ok());
}

async fn another_root_in_the_place_of_a_known_one_is_told_and_nothing_under_it_is_put_back(
    database: Database,
) {
    let before = database.cluster().await;
    let secret = setup_key(&before, &reusable()).await;
    let snapshot = before.store().snapshot().await.unwrap();
    drop(before);
    let other = Cluster::load(database.open().await, RootAccess::Sign(None)).await.unwrap();
    rotate(&other).await;
    database.copy().await;
    let imported = database.open().await.import(&snapshot, Occupied::Replace).await;
    assert_eq!(imported, Ok(Imported::Done));
    let cluster = database.cluster().await;
    rotate(&cluster).await;
    let (known, found) = (cluster.state().root.public(), other.state().root.public());
    let lost = enter(&cluster, &secret, "lost").await.unwrap();
    database.restore_copy().await;
    eventually("it is told", async || cluster.root_fork().is_some()).await;
    let told = cluster.root_fork().unwrap();
    assert!(
        told.contains(&known.fingerprint().to_string()) && told.contains(&found.fingerprint().to_string())
    );
    enter(&cluster, &secret, "new").await.unwrap();
    let state = cluster.state();
    assert_eq!(state.root.public(), found);
    assert!(state.node_by_key(&lost.key).is_none(), "its certificate is nobody's here");
}
