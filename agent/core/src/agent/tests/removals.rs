//! Removals: kept, told to peers and servers, believed under the root's signature only.

use super::*;
use crate::trust::Pins;
use proto::{
    peer_message::{Body, PeerMessage},
    root_list::RootList,
};

fn removal(node: u8, at: u64) -> Vec<u8> {
    let removal = Removal { node_key: key(node), removed_at: UnixTime(at), until: None };
    Statement::Removal(removal).sign(NETWORK, &root())
}

fn endpoint(node: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node], 51820))
}

impl Bench {
    /// Served, with these peers in the map and a tunnel to each.
    pub(super) fn connected_to(peers: &[u8]) -> Self {
        let mut bench = Self::served();
        let put = peers.iter().map(|node| peer_object(*node, &format!("p{node}"), certificate(*node, None)));
        bench.tell(2, put.collect(), Vec::new());
        peers.iter().for_each(|node| bench.tunnel_up(*node));
        bench.outputs();
        bench
    }

    fn tunnel_up(&mut self, node: u8) {
        let event = TunnelEvent::HandshakeDone { peer: key(node), endpoint: endpoint(node) };
        self.agent.handle_tunnel(event, self.now);
    }

    pub(super) fn hear(&mut self, node: u8, body: Body) -> Vec<Output> {
        let payload = PeerMessage { boot: 1, body }.encode();
        let event = TunnelEvent::Message { peer: key(node), payload, from: endpoint(node) };
        self.agent.handle_tunnel(event, self.now);
        self.outputs()
    }
}

/// What was said to peers about removals.
fn told(outputs: &[Output]) -> Vec<(PublicKey, Body)> {
    let message = |output: &Output| {
        let Output::Tunnel(TunnelCommand::Message { peer, payload, .. }) = output else { return None };
        match PeerMessage::decode(payload).ok()?.body {
            Body::Probe(_)
            | Body::ProbeReply(_)
            | Body::Endpoints(_)
            | Body::Leaving
            | Body::Holdings(_)
            | Body::Unknown => None,
            body @ (Body::Removed { .. }
            | Body::RemovedSeen(_)
            | Body::RemovalSummary(_)
            | Body::Roots(_)
            | Body::RootsWanted) => Some((*peer, body)),
        }
    };
    outputs.iter().filter_map(message).collect()
}

fn said_to_server(outputs: &[Output]) -> Vec<Vec<u8>> {
    let removals = |output: &Output| {
        let Output::Send { message: AgentMessage::Removal(signed), .. } = output else { return None };
        Some(signed.clone())
    };
    outputs.iter().filter_map(removals).collect()
}

#[test]
fn a_removal_is_passed_on_once_and_not_to_who_told_it() {
    let mut bench = Bench::connected_to(&[2, 3, 4]);
    let gone = removal(4, NOW_S);
    let outputs = bench.hear(2, Body::Removed { removals: vec![gone.clone()], id: 9 });
    assert_eq!(removals(&outputs), [key(4)]);
    let told_now = told(&outputs);
    assert!(told_now.contains(&(key(2), Body::RemovedSeen(9))));
    assert!(told_now.contains(&(key(3), Body::Removed { removals: vec![gone.clone()], id: 1 })));
    assert!(
        told_now.contains(&(key(4), Body::Removed { removals: vec![gone.clone()], id: 0 })),
        "its last word"
    );
    assert_eq!(told_now.len(), 3);
    let again = bench.hear(3, Body::Removed { removals: vec![gone], id: 5 });
    assert_eq!(told(&again), [(key(3), Body::RemovedSeen(5))], "it is no news");
}

#[test]
fn what_is_not_answered_is_repeated_and_given_up_and_an_answer_ends_it() {
    for answered in [false, true] {
        let mut bench = Bench::connected_to(&[2, 3]);
        bench.hear(2, Body::Removed { removals: vec![removal(9, NOW_S)], id: 0 });
        let again = told(&bench.at(Duration::from_secs(1)));
        assert!(matches!(&again[..], [(_, Body::Removed { id: 1, .. })]), "{again:?}");
        if answered {
            bench.hear(3, Body::RemovedSeen(1));
        }
        let rest: Vec<_> = (2..120).flat_map(|at| told(&bench.at(Duration::from_secs(at)))).collect();
        assert_eq!(rest.len(), if answered { 0 } else { 3 });
        assert_eq!(bench.agent.gossip.len(), 0);
    }
}

#[test]
fn a_tunnel_that_comes_up_shows_who_knows_more() {
    let mut bench = Bench::connected_to(&[2, 3]);
    bench.hear(2, Body::Removed { removals: vec![removal(9, NOW_S)], id: 0 });
    let own = bench.agent.netmap.removals().digest();
    bench.hear(3, Body::RemovedSeen(1));
    assert_eq!(told(&bench.hear(3, Body::RemovalSummary(own))), [], "it knows the same");
    let answer = told(&bench.hear(3, Body::RemovalSummary([1; 32])));
    let sent = Body::Removed { removals: vec![removal(9, NOW_S)], id: 2 };
    assert_eq!(answer, [(key(3), Body::RemovalSummary(own)), (key(3), sent)]);
    bench.agent.handle_tunnel(TunnelEvent::SessionLost { peer: key(3) }, bench.now);
    bench.outputs();
    bench.tunnel_up(3);
    assert_eq!(told(&bench.outputs()), [(key(3), Body::RemovalSummary(own))]);
}

#[test]
fn two_that_differ_and_have_nothing_to_tell_do_not_answer_each_other_for_ever() {
    let mut bench = Bench::connected_to(&[2, 3]);
    bench.hear(2, Body::Removed { removals: vec![removal(9, NOW_S)], id: 0 });
    bench.hear(3, Body::RemovedSeen(1));
    let summary = || Body::RemovalSummary([1; 32]);
    assert_eq!(told(&bench.hear(3, summary())).len(), 2);
    bench.hear(3, Body::RemovedSeen(2));
    assert_eq!(told(&bench.hear(3, summary())), [], "that was answered");
    bench.at(Duration::from_secs(11));
    assert_eq!(told(&bench.hear(3, summary())).len(), 2, "later it may be another run of the peer");
}

#[test]
fn neither_an_older_map_nor_a_restart_brings_a_removed_peer_back_but_a_newer_certificate_does() {
    let mut bench = Bench::connected_to(&[2, 3]);
    let before = cache::decode(&bench.agent.map_cache()).unwrap();
    bench.hear(2, Body::Removed { removals: vec![removal(3, NOW_S)], id: 0 });
    assert!(bench.agent.netmap.member(&key(3)).is_none());
    let kept = cache::decode(&bench.agent.map_cache()).unwrap();
    assert_eq!(kept.objects, before.objects, "the map itself is the server's");
    let mut again = Bench::started(bench.agent.saved(), Some(kept));
    assert!(again.agent.netmap.member(&key(2)).is_some() && again.agent.netmap.member(&key(3)).is_none());
    assert_eq!(told(&again.outputs()), [], "what was kept is no news");
    // A server that never heard of it.
    let outputs = bench.tell(3, vec![peer_object(3, "again", certificate(3, None))], Vec::new());
    assert_eq!(upserts(&outputs), []);
    let later = Membership {
        node_id: NodeId(3),
        node_key: key(3),
        addresses: vec![[100, 64, 0, 3].into()],
        claims: Vec::new(),
        issued_at: UnixTime(NOW_S + 1),
        not_after: None,
    };
    let later = Statement::Membership(later).sign(NETWORK, &root());
    assert_eq!(upserts(&bench.tell(4, vec![peer_object(3, "back", later)], Vec::new())), [key(3)]);
}

#[test]
fn a_peer_that_proves_our_removal_ends_our_membership() {
    let mut bench = Bench::connected_to(&[2]);
    bench.hear(2, Body::Removed { removals: vec![removal(1, NOW_S - 5000)], id: 0 });
    assert!(bench.agent.is_enrolled(), "we were taken in since");
    let other = RootSecret::from_seed(&[8; 32]);
    let forged = Statement::Removal(Removal { node_key: key(1), removed_at: UnixTime(NOW_S), until: None });
    bench.hear(2, Body::Removed { removals: vec![forged.sign(NETWORK, &other)], id: 0 });
    assert!(bench.agent.is_enrolled());
    let outputs = bench.hear(2, Body::Removed { removals: vec![removal(1, NOW_S)], id: 0 });
    assert!(!bench.agent.is_enrolled());
    let is_told = |output: &Output| matches!(output, Output::Notice(Notice::Refused(_)));
    assert!(outputs.iter().any(is_told));
}

#[test]
fn a_server_whose_map_lacks_a_removal_is_told_it_once() {
    let mut bench = Bench::connected_to(&[2, 3]);
    let gone = removal(3, NOW_S);
    bench.hear(2, Body::Removed { removals: vec![gone.clone()], id: 0 });
    let beat = |bench: &mut Bench, revision| said_to_server(&bench.heartbeat(version(revision), NOW_S));
    assert_eq!(
        beat(&mut bench, 1),
        Vec::<Vec<u8>>::new(),
        "a server that is behind may just not have told it"
    );
    assert_eq!(beat(&mut bench, 2), [gone]);
    assert_eq!(beat(&mut bench, 3), Vec::<Vec<u8>>::new());
    let object = Object::new(&Content::Removal(removal(2, NOW_S)), key(2).0.to_vec()).unwrap();
    bench.tell(4, vec![object], vec![ObjectId::peer(key(2))]);
    assert_eq!(beat(&mut bench, 4), Vec::<Vec<u8>>::new(), "this one it told itself");
}

#[test]
fn garbage_from_a_peer_is_verified_at_a_bounded_rate_and_not_answered() {
    let mut bench = Bench::connected_to(&[2]);
    let mut answers = 0;
    for id in 1..=200u8 {
        let forged = RootSecret::from_seed(&[8; 32]);
        let forged = Statement::NextRoot(forged.public()).sign(NETWORK, &forged);
        answers += told(&bench.hear(2, Body::Removed { removals: vec![forged], id: id.into() })).len();
    }
    assert_eq!(answers, 100);
}

fn next(by: &RootSecret, root: &RootSecret) -> Vec<u8> {
    Statement::NextRoot(root.public()).sign(NETWORK, by)
}

fn removal_by(node: u8, by: &RootSecret) -> Vec<u8> {
    let removal = Removal { node_key: key(node), removed_at: UnixTime(NOW_S), until: None };
    Statement::Removal(removal).sign(NETWORK, by)
}

#[test]
fn a_removal_under_a_root_that_was_missed_is_believed_when_the_peer_leads_there() {
    let mut bench = Bench::connected_to(&[2, 3, 4]);
    let [second, third] = [10, 11].map(|seed| RootSecret::from_seed(&[seed; 32]));
    let told_it =
        |bench: &mut Bench| bench.hear(2, Body::Removed { removals: vec![removal_by(4, &third)], id: 9 });
    let outputs = told_it(&mut bench);
    assert_eq!((told(&outputs), removals(&outputs)), (vec![(key(2), Body::RootsWanted)], vec![]));
    let links = vec![next(&root(), &second), next(&second, &third)];
    let outputs = bench.hear(2, Body::Roots(links.clone()));
    assert!(outputs.contains(&Output::SaveState));
    assert_eq!(removals(&outputs), [key(4)]);
    assert!(told(&outputs).contains(&(key(2), Body::RemovedSeen(9))));
    assert_eq!(told(&bench.hear(3, Body::RootsWanted)), [(key(3), Body::Roots(links.clone()))]);
    assert_eq!(told(&bench.hear(3, Body::RootsWanted)), [], "not at any rate");
    let kept = cache::decode(&bench.agent.map_cache()).unwrap();
    let mut again = Bench::started(bench.agent.saved(), Some(kept));
    again.tunnel_up(3);
    again.outputs();
    assert_eq!(told(&again.hear(3, Body::RootsWanted)), [(key(3), Body::Roots(links))]);
}

#[test]
fn who_kept_the_secret_of_a_replaced_root_leads_nobody_away_from_the_servers() {
    let mut bench = Bench::connected_to(&[2, 3]);
    let [real, attackers] = [10, 66].map(|seed| RootSecret::from_seed(&[seed; 32]));
    let away = || Body::Roots(vec![next(&root(), &attackers)]);
    assert!(bench.hear(2, away()).is_empty());
    assert_eq!(bench.agent.netmap.trust().unwrap().led().count(), 0, "nobody asked");
    let told_it = Body::Removed { removals: vec![removal_by(9, &attackers)], id: 9 };
    assert_eq!(told(&bench.hear(2, told_it)), [(key(2), Body::RootsWanted)]);
    bench.hear(2, away());
    let before = root().public().fingerprint();
    assert_eq!(bench.agent.pins().unwrap(), Pins::only(before));
    assert_eq!(bench.agent.saved().pins().unwrap(), Pins::only(before));
    let member = |by: &RootSecret| Statement::trust(&certificate(3, None)).unwrap().1.sign(NETWORK, by);
    let outputs = bench.tell(3, vec![peer_object(4, "d", member(&attackers))], Vec::new());
    assert_eq!(upserts(&outputs), [], "it makes no members");
    let list = RootList { first: root().public(), next: vec![next(&root(), &real)], after: version(3) };
    bench.say(ConnId(0), ServerMessage::Roots(list));
    let newest = real.public().fingerprint();
    assert_eq!(bench.agent.saved().pins().unwrap(), Pins { newest, former: vec![before] });
    bench.hear(2, Body::Removed { removals: vec![removal_by(8, &attackers)], id: 10 });
    assert!(!bench.agent.knows_removal(&key(8)), "since then it proves nothing");
}

#[test]
fn a_removal_that_nobody_proves_holds_up_no_other_even_if_the_peer_does_not_answer() {
    let mut bench = Bench::connected_to(&[2, 3]);
    let stranger = RootSecret::from_seed(&[20; 32]);
    let body = |id| Body::Removed { removals: vec![removal_by(9, &stranger), removal(8, NOW_S)], id };
    let asked = |outputs: Vec<Output>| told(&outputs).contains(&(key(2), Body::RootsWanted));
    assert!(asked(bench.hear(2, body(9))));
    assert!(bench.agent.knows_removal(&key(8)), "the rest is judged at once");
    assert_eq!(told(&bench.hear(2, body(9))), [], "delivered twice");
    bench.at(Duration::from_secs(1));
    assert!(asked(bench.hear(2, body(9))), "the question may be lost");
    bench.at(Duration::from_secs(3));
    assert_eq!(told(&bench.hear(2, body(9))), [(key(2), Body::RemovedSeen(9))]);
    assert_eq!(told(&bench.hear(2, body(10))), [(key(2), Body::RemovedSeen(10))], "asked a moment ago");
    bench.at(Duration::from_secs(15));
    assert!(asked(bench.hear(2, body(11))));
}

#[test]
fn what_no_root_signed_that_the_peer_leads_to_is_answered_and_holds_nothing_up() {
    let mut bench = Bench::connected_to(&[2, 3]);
    let stranger = RootSecret::from_seed(&[20; 32]);
    let body = || Body::Removed { removals: vec![removal_by(9, &stranger), removal(8, NOW_S)], id: 9 };
    assert!(told(&bench.hear(2, body())).contains(&(key(2), Body::RootsWanted)));
    let outputs = told(&bench.hear(2, Body::Roots(vec![next(&stranger, &stranger)])));
    assert_eq!(outputs, [(key(2), Body::RemovedSeen(9))]);
    assert_eq!(told(&bench.hear(2, body())), [(key(2), Body::RemovedSeen(9))], "asked a moment ago");
    assert!(bench.agent.knows_removal(&key(8)) && !bench.agent.knows_removal(&key(9)));
    assert_eq!(bench.agent.pins().unwrap().newest, root().public().fingerprint());
}
