//! Leases of those who hold what is claimed exclusively, and taking over.

use super::{enter, reusable, setup_key};
use crate::{
    cluster::{Actor, GrantError, allow_claim, grant, observe, testing::exclusive, testing::vip},
    follow::{Cluster, TakeOver, WriteError},
    store::{
        Occupied,
        testing::{Database, eventually},
    },
};
use proto::{holding::Holding, session::Facts, statement::NodeId};
use std::{collections::BTreeSet, convert::Infallible, time::Duration};

on_both_databases!(
    a_lease_runs_for_its_time_and_a_node_that_goes_ends_it,
    nobody_takes_over_from_one_whose_lease_runs,
    of_many_who_take_over_at_once_one_does_and_no_fence_is_given_twice,
    holdings_and_fences_come_along_to_another_database,
);

const LONG: Duration = Duration::from_secs(60);

/// Nodes that claim the same exclusively.
async fn claimers(cluster: &Cluster, count: usize) -> Vec<NodeId> {
    let secret = setup_key(cluster, &reusable()).await;
    let mut nodes = Vec::new();
    for number in 0..count {
        let node = enter(cluster, &secret, &format!("n{number}")).await.unwrap().id;
        let allowed = cluster.write(Actor::CommandLine, |state, now| {
            allow_claim(state, state.node(node).unwrap(), vip(), now).map(|ops| (ops, ()))
        });
        allowed.await.unwrap();
        let claimed = cluster.write(Actor::CommandLine, |state, now| {
            let node = state.node(node).unwrap();
            let facts = Facts { claims: vec![exclusive(0)], ..node.facts.clone() };
            Ok::<_, Infallible>((observe(node, now, Some(&facts), None).into_iter().collect(), ()))
        });
        claimed.await.unwrap();
        nodes.push(node);
    }
    nodes
}

async fn take(
    cluster: &Cluster,
    from: Option<Holding>,
    to: NodeId,
    ttl: Duration,
) -> Result<Holding, WriteError<GrantError>> {
    let take = TakeOver { from: from.map(|holding| holding.node), to, ttl };
    let taken = cluster.write_take_over(Actor::CommandLine, take, |state, now, is_free| match is_free {
        true => grant(state, vip(), (from, to), now),
        false => Err(GrantError::Overtaken),
    });
    taken.await
}

async fn a_lease_runs_for_its_time_and_a_node_that_goes_ends_it(database: Database) {
    let cluster = database.cluster().await;
    let nodes = claimers(&cluster, 2).await;
    let store = cluster.store();
    let running = async || store.holder_leases(&nodes).await.unwrap().into_keys().collect::<BTreeSet<_>>();
    assert!(running().await.is_empty());
    store.renew_holders(&nodes[..1], Duration::from_millis(300)).await.unwrap();
    store.renew_holders(&nodes[1..], LONG).await.unwrap();
    assert_eq!(running().await, BTreeSet::from([nodes[0], nodes[1]]));
    eventually("a lease ends", async || running().await == BTreeSet::from([nodes[1]])).await;
    store.release_holder(nodes[1]).await.unwrap();
    assert!(running().await.is_empty());
    store.renew_holders(&[NodeId(999)], LONG).await.unwrap();
    assert!(store.holder_leases(&[NodeId(999)]).await.unwrap().is_empty(), "there is no such node");
}

async fn nobody_takes_over_from_one_whose_lease_runs(database: Database) {
    let cluster = database.cluster().await;
    let nodes = claimers(&cluster, 2).await;
    let first = take(&cluster, None, nodes[0], LONG).await.unwrap();
    let refused = take(&cluster, Some(first), nodes[1], LONG).await;
    assert_eq!(refused, Err(WriteError::Refused(GrantError::Overtaken)));
    assert_eq!(cluster.state().holder(&vip(), cluster.now()), Some(&first));
    cluster.store().release_holder(nodes[0]).await.unwrap();
    let second = take(&cluster, Some(first), nodes[1], LONG).await.unwrap();
    assert!(second.fence > first.fence);
    let leases = cluster.store().holder_leases(&nodes).await.unwrap();
    assert_eq!(leases.into_keys().collect::<Vec<_>>(), [nodes[1]], "it was taken with the prefix");
}

async fn of_many_who_take_over_at_once_one_does_and_no_fence_is_given_twice(database: Database) {
    const ROUNDS: usize = 10;
    let (a, b) = (database.cluster().await, database.cluster().await);
    let nodes = claimers(&a, 6).await;
    let mut changed = b.changed();
    let mut held: Option<Holding> = None;
    let mut fences = BTreeSet::new();
    for _ in 0..ROUNDS {
        let level = a.state().version().max(b.state().version());
        changed.wait_for(|version| *version >= level).await.unwrap();
        let attempts = nodes.iter().enumerate().map(|(place, node)| {
            let cluster = if place % 2 == 0 { a.clone() } else { b.clone() };
            let (from, to) = (held, *node);
            tokio::spawn(async move { take(&cluster, from, to, Duration::from_millis(1)).await })
        });
        let mut taken = Vec::new();
        for attempt in attempts.collect::<Vec<_>>() {
            match attempt.await.unwrap() {
                Ok(holding) => taken.push(holding),
                Err(error) => assert_eq!(error, WriteError::Refused(GrantError::Overtaken)),
            }
        }
        let [one] = taken[..] else { panic!("{taken:?}") };
        assert!(fences.insert(one.fence) && fences.last() == Some(&one.fence), "{fences:?}");
        held = Some(one);
        let store = a.store();
        let is_over = async || !store.holder_leases(&[one.node]).await.unwrap().contains_key(&one.node);
        eventually("the lease is over", is_over).await;
    }
}

async fn holdings_and_fences_come_along_to_another_database(database: Database) {
    let cluster = database.cluster().await;
    let nodes = claimers(&cluster, 2).await;
    let first = take(&cluster, None, nodes[0], LONG).await.unwrap();
    let snapshot = cluster.store().snapshot().await.unwrap();
    let other = Database::sqlite();
    let store = other.open().await;
    store.import(&snapshot, Occupied::Refuse).await.unwrap();
    let moved = Cluster::open(store).await.unwrap();
    assert_eq!(moved.state().holdings(), cluster.state().holdings());
    let next = take(&moved, Some(first), nodes[1], LONG).await.unwrap();
    assert!(next.fence > first.fence, "its lease did not come along");
}
