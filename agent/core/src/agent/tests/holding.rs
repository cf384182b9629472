//! What is claimed exclusively: who serves it, and who is sent to.

use super::*;
use crate::{io::Closed, status};
use ipnet::IpNet;
use proto::{
    claim::Claim,
    holding::Holding,
    peer_message::{Body, PeerMessage},
};

fn vip() -> IpNet {
    "10.9.0.1/32".parse().unwrap()
}

fn exclusive() -> Claim {
    Claim { exclusive: true, ..Claim::new(vip()) }
}

fn granted(node: u8) -> Vec<u8> {
    let membership = Membership {
        node_id: NodeId(node.into()),
        node_key: key(node),
        addresses: vec![[100, 64, 0, node].into()],
        claims: vec![vip()],
        issued_at: UnixTime(NOW_S),
        not_after: None,
    };
    Statement::Membership(membership).sign(NETWORK, &root())
}

fn claimer(node: u8, claim: Claim) -> Object {
    let peer = MapPeer {
        node_id: NodeId(node.into()),
        name: format!("p{node}"),
        membership: granted(node),
        endpoints: vec![SocketAddr::from(([192, 0, 2, node], 51820))],
        os: String::new(),
        agent_version: String::new(),
        expires_at: None,
        ephemeral: false,
        claims: vec![claim],
    };
    Object::new(&Content::Peer(peer), key(node).0.to_vec()).unwrap()
}

fn held(node: u8, fence: u64) -> Holding {
    Holding { prefix: vip(), node: NodeId(node.into()), fence, since: UnixTime(NOW_S) }
}

fn holdings(node: u8, fence: u64) -> Object {
    Object::new(&Content::Holdings(vec![held(node, fence)]), Vec::new()).unwrap()
}

/// Claims it, beside another that does.
fn rival() -> Bench {
    let mut bench = Bench::served();
    bench.agent.set_claims(vec![exclusive()], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1)));
    bench.tell(2, vec![claimer(2, exclusive())], Vec::new());
    bench
}

fn serves(bench: &Bench) -> bool {
    bench.agent.status(bench.now).own.claims[0].state == status::OwnClaimState::Served
}

fn told_to_hold(outputs: &[Output], node: u8) -> bool {
    outputs.iter().any(|output| {
        let Output::Tunnel(TunnelCommand::Message { peer, payload, .. }) = output else { return false };
        *peer == key(node) && matches!(PeerMessage::decode(payload).unwrap().body, Body::Holdings(_))
    })
}

#[test]
fn it_is_served_while_it_is_held_and_no_longer() {
    let mut bench = rival();
    assert!(!serves(&bench));
    let outputs = bench.tell(3, vec![holdings(1, 1)], Vec::new());
    assert!(serves(&bench) && bench.agent.held().get(&vip()) == Some(&1));
    assert!(outputs.contains(&Output::Notice(Notice::Held { prefix: vip(), fence: Some(1) })));
    assert!(told_to_hold(&outputs, 2), "whoever held it may reach no server");
    let outputs = bench.tell(4, vec![holdings(2, 2)], Vec::new());
    assert!(!serves(&bench));
    assert!(outputs.contains(&Output::Notice(Notice::Held { prefix: vip(), fence: None })));
    let reason = bench.agent.status(bench.now).own.claims[0].reason.clone().unwrap();
    assert!(reason.contains("p2 holds it, fence 2"), "{reason}");
}

#[test]
fn a_holder_hears_from_its_successor_that_it_is_none_and_believes_no_lower_fence() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    let outputs = bench.hear(2, Body::Holdings(vec![held(2, 4)]));
    assert!(serves(&bench) && told_to_hold(&outputs, 2), "the other one is told");
    bench.hear(2, Body::Holdings(vec![held(2, 6)]));
    assert!(!serves(&bench));
    bench.tell(4, vec![holdings(1, 5)], Vec::new());
    assert!(!serves(&bench), "that map is behind");
    bench.tell(5, vec![holdings(1, 7)], Vec::new());
    assert!(serves(&bench));
}

#[test]
fn who_may_not_claim_it_or_speaks_for_others_is_not_believed() {
    let mut bench = rival();
    let stranger = peer_object(3, "stranger", certificate(3, None));
    bench.tell(3, vec![holdings(1, 5), stranger], Vec::new());
    bench.hear(3, Body::Holdings(vec![held(3, 9)]));
    bench.hear(3, Body::Holdings(vec![held(2, 9)]));
    bench.hear(2, Body::Holdings(vec![held(3, 9)]));
    assert!(serves(&bench));
}

#[test]
fn after_a_start_the_disk_is_believed_once_servers_had_the_time_to_say_otherwise() {
    let mut before = rival();
    before.tell(3, vec![holdings(1, 5)], Vec::new());
    let (saved, cache) = (before.agent.saved(), before.agent.map_cache());
    let again = || {
        let mut again = Bench::started(saved.clone(), Some(cache::decode(&cache).unwrap()));
        again.agent.set_claims(vec![exclusive()], again.now);
        again.map = before.map.clone();
        again
    };
    let mut alone = again();
    assert!(!serves(&alone));
    alone.at(Duration::from_millis(4_900));
    assert!(!serves(&alone));
    alone.at(Duration::from_secs(5));
    assert!(serves(&alone), "as one that never went");
    let mut told = again();
    let dialled = |output: Output| {
        let Output::Dial(dial) = output else { return None };
        Some(dial.conn)
    };
    let conn = told.outputs().into_iter().find_map(dialled);
    told.connect(conn.unwrap());
    assert!(!serves(&told), "what the server is at is no map yet");
    let delta = told.step(6, vec![holdings(2, 6)], Vec::new());
    told.say(conn.unwrap(), ServerMessage::Map(delta));
    told.at(Duration::from_secs(6));
    assert!(!serves(&told));
}

#[test]
fn what_the_disk_says_is_acted_on_although_something_else_happens_just_before_the_timeout() {
    let mut before = rival();
    before.tell(3, vec![holdings(1, 5)], Vec::new());
    let cache = cache::decode(&before.agent.map_cache()).unwrap();
    let mut alone = Bench::started(before.agent.saved(), Some(cache));
    alone.agent.set_claims(vec![exclusive()], alone.now);
    alone.now = START + Duration::from_millis(5_001);
    alone.agent.handle_networks(Vec::new(), alone.now);
    assert!(alone.agent.poll_timeout().is_some_and(|deadline| deadline.at <= alone.now));
    alone.outputs();
    let outputs = alone.at(Duration::from_millis(5_002));
    assert!(outputs.contains(&Output::Notice(Notice::Held { prefix: vip(), fence: Some(5) })));
}

#[test]
fn a_successor_that_was_heard_of_in_a_tunnel_is_known_after_a_start() {
    let mut before = rival();
    before.tell(3, vec![holdings(1, 5)], Vec::new());
    before.hear(2, Body::Holdings(vec![held(2, 6)]));
    let saved = before.agent.saved();
    let cache = cache::decode(&before.agent.map_cache()).unwrap();
    let mut again = Bench::started(saved, Some(cache));
    again.agent.set_claims(vec![exclusive()], again.now);
    again.at(Duration::from_secs(6));
    assert!(!serves(&again));
    assert_eq!(again.agent.status(again.now).own.claims[0].holder.clone().unwrap().fence, 6);
}

#[test]
fn a_fence_that_no_server_confirms_is_believed_no_longer_than_it_takes_to_know() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    bench.heartbeat(version(3), NOW_S);
    bench.hear(2, Body::Holdings(vec![held(2, u64::MAX)]));
    assert!(!serves(&bench));
    let judged_at = bench.agent.holding_deadline();
    assert_eq!(judged_at, Some(bench.now + Duration::from_secs(5)));
    bench.now = judged_at.unwrap();
    bench.heartbeat(version(3), NOW_S + 5);
    bench.agent.look_at_holdings();
    assert!(serves(&bench), "servers know better");
    bench.hear(2, Body::Holdings(vec![held(2, u64::MAX)]));
    assert!(serves(&bench), "once is enough");
    bench.agent.handle_closed(ConnId(0), &Closed::Ended("gone".to_owned()), bench.now);
    bench.outputs();
    bench.at(Duration::from_secs(20));
    assert!(!serves(&bench), "nobody is there who knows better");
}

#[test]
fn what_a_peer_told_of_itself_goes_with_its_claim() {
    let shared = Claim { exclusive: false, ..exclusive() };
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    bench.hear(2, Body::Holdings(vec![held(2, 9)]));
    assert!(!serves(&bench));
    bench.tell(4, vec![claimer(2, shared)], Vec::new());
    assert!(serves(&bench));
}

#[test]
fn in_the_middle_of_a_map_that_comes_in_parts_nobody_is_back_at_a_former_holder() {
    let shared = Claim { exclusive: false, ..exclusive() };
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    bench.hear(2, Body::Holdings(vec![held(2, 6)]));
    let whole = bench.step(4, vec![claimer(2, shared)], Vec::new());
    bench.say(ConnId(0), ServerMessage::Map(Delta { last: false, ..whole }));
    bench.outputs();
    assert!(!serves(&bench), "the next part may say who holds it now");
    bench.tell(4, vec![holdings(3, 7)], Vec::new());
    assert!(!serves(&bench));
    assert_eq!(bench.agent.netmap.holdings().heard().count(), 0);
}

#[test]
fn a_map_of_which_only_the_end_was_lost_is_whole_once_a_server_says_that_it_is_its_map() {
    let shared = Claim { exclusive: false, ..exclusive() };
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    bench.hear(2, Body::Holdings(vec![held(2, 6)]));
    let opened = proto::rule::Rule { destinations: vec![vip()], ..proto::rule::Rule::all() };
    let opened = Object::new(&Content::Rule(opened), vec![9]).unwrap();
    let whole = bench.step(4, vec![claimer(2, shared), opened], Vec::new());
    bench.say(ConnId(0), ServerMessage::Map(Delta { last: false, ..whole }));
    bench.told = version(3);
    bench.heartbeat(version(4), NOW_S);
    assert!(!serves(&bench), "the rest is under way");
    bench.told = version(4);
    let outputs = bench.heartbeat(version(4), NOW_S);
    assert!(serves(&bench));
    let is_rules = |output: &Output| matches!(output, Output::Tunnel(TunnelCommand::SetRules(rules)) if !rules.is_empty());
    assert!(outputs.iter().any(is_rules), "its rules count, too: {outputs:?}");
}

#[test]
fn what_a_successor_held_that_is_gone_is_not_its_predecessors_until_a_server_had_the_time_to_say_so() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    bench.hear(2, Body::Holdings(vec![held(2, 6)]));
    bench.tell(4, Vec::new(), vec![ObjectId::peer(key(2))]);
    assert!(!serves(&bench), "it may be somebody else's by now");
    bench.now = bench.agent.holding_deadline().unwrap();
    bench.heartbeat(version(4), NOW_S + 5);
    bench.agent.look_at_holdings();
    assert!(serves(&bench), "servers know better");
    assert_eq!(bench.agent.netmap.holdings().heard().count(), 0);
}

#[test]
fn after_a_start_nothing_goes_to_whom_the_map_names_where_a_successor_was_heard_of() {
    let mut before = Bench::served();
    let claimers = vec![holdings(2, 5), claimer(2, exclusive()), claimer(3, exclusive())];
    before.tell(3, claimers, Vec::new());
    before.hear(3, Body::Holdings(vec![held(3, 6)]));
    let cache = cache::decode(&before.agent.map_cache()).unwrap();
    let mut again = Bench::started(before.agent.saved(), Some(cache));
    let outputs = again.outputs();
    let given = |node| {
        let is_given = |output: &Output| matches!(output, Output::Tunnel(TunnelCommand::Upsert { peer, allowed_ips, .. }) if *peer == key(node) && allowed_ips.contains(&vip()));
        outputs.iter().any(is_given)
    };
    assert_eq!((given(2), given(3)), (false, true));
}

#[test]
fn a_server_without_its_database_confirms_nothing() {
    let mut before = rival();
    before.tell(3, vec![holdings(1, 5)], Vec::new());
    let cache = cache::decode(&before.agent.map_cache()).unwrap();
    let mut again = Bench::started(before.agent.saved(), Some(cache));
    again.agent.set_claims(vec![exclusive()], again.now);
    again.agent.on_database_told(false);
    again.agent.on_confirmed();
    assert!(!serves(&again));
    again.agent.on_database_told(true);
    again.agent.on_confirmed();
    assert!(serves(&again));
}

#[test]
fn a_node_of_the_same_name_is_not_taken_for_this_one() {
    let mut bench = rival();
    bench.agent.config.facts.hostname = "p2".to_owned();
    bench.tell(3, vec![holdings(2, 5)], Vec::new());
    let reason = bench.agent.status(bench.now).own.claims[0].reason.clone().unwrap();
    assert!(reason.contains("p2 holds it, fence 5"), "{reason}");
}

#[test]
fn clients_send_to_the_holder_alone_and_follow_it() {
    let mut bench = Bench::served();
    bench.tell(2, vec![claimer(2, exclusive()), claimer(3, exclusive())], Vec::new());
    let active = |bench: &Bench| bench.agent.status(bench.now).claims[0].active.clone();
    assert_eq!(active(&bench), None, "nobody holds it");
    for (revision, node) in [(3, 3), (4, 2), (5, 3)] {
        bench.tell(revision, vec![holdings(node, revision)], Vec::new());
        assert_eq!(active(&bench), Some(format!("p{node}")));
    }
    bench.tell(6, Vec::new(), vec![ObjectId::peer(key(3))]);
    assert_eq!(active(&bench), None, "nobody stands in for it");
}

#[test]
fn who_shares_what_another_claims_exclusively_is_refused_by_name() {
    let mut bench = Bench::served();
    bench.agent.set_claims(vec![Claim::new(vip())], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1)));
    assert!(serves(&bench));
    bench.tell(2, vec![claimer(2, exclusive())], Vec::new());
    let reason = bench.agent.status(bench.now).own.claims[0].reason.clone().unwrap();
    assert!(!serves(&bench) && reason.contains("p2 claims it exclusively"), "{reason}");
}

/// What the machine is to serve, as last ordered.
fn ordered(outputs: &[Output]) -> Option<Vec<IpNet>> {
    outputs.iter().rev().find_map(|output| {
        let Output::Configure { served, .. } = output else { return None };
        Some(served.clone())
    })
}

#[test]
fn who_gave_way_to_an_exclusive_claim_gets_its_address_back_when_that_is_shared_or_gone() {
    let others =
        [(vec![claimer(2, Claim::new(vip()))], Vec::new()), (Vec::new(), vec![ObjectId::peer(key(2))])];
    for holder in [None, Some(2)] {
        for (put, gone) in others.clone() {
            let mut bench = Bench::served();
            bench.agent.set_claims(vec![Claim::new(vip())], bench.now);
            bench.say(ConnId(0), ServerMessage::Membership(granted(1)));
            bench.tell(2, vec![claimer(2, Claim::new(vip()))], Vec::new());
            let held = holder.map(|node| holdings(node, 5)).into_iter();
            let outputs = bench.tell(3, held.chain([claimer(2, exclusive())]).collect(), Vec::new());
            assert_eq!(ordered(&outputs), Some(Vec::new()), "it gives way");
            let outputs = bench.tell(4, put, gone);
            assert_eq!(ordered(&outputs), Some(vec![vip()]), "it serves again");
        }
    }
}

#[test]
fn status_says_who_can_take_over_and_who_cannot() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(2, 5)], Vec::new());
    let stuck = |bench: &Bench| {
        let holder = bench.agent.status(bench.now).claims[0].holder.clone().unwrap();
        assert_eq!((holder.name.as_str(), holder.fence), ("p2", 5));
        holder.stuck
    };
    assert_eq!(stuck(&bench), None);
    bench.agent.on_database_told(false);
    assert!(stuck(&bench).unwrap().contains("the database is away: nobody can take over"));
    bench.agent.handle_closed(ConnId(0), &Closed::Ended("gone".to_owned()), bench.now);
    assert!(stuck(&bench).unwrap().contains("no server is reached"));
}

#[test]
fn one_that_drains_asks_servers_for_a_successor() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    let endpoint = SocketAddr::from(([192, 0, 2, 2], 51820));
    bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(2), endpoint }, bench.now);
    bench.outputs();
    bench.agent.drain(bench.now);
    let yields = |output: &Output| matches!(output, Output::Send { message: AgentMessage::Update { facts, .. }, .. } if facts.claims[0].yields);
    assert!(bench.outputs().iter().any(yields));
    assert!(serves(&bench), "until there is one");
}

#[test]
fn one_that_withdraws_asks_servers_for_a_successor_and_restored_it_may_hold_again() {
    let mut bench = rival();
    bench.tell(3, vec![holdings(1, 5)], Vec::new());
    let yields = |outputs: &[Output]| {
        outputs.iter().find_map(|output| {
            let Output::Send { message: AgentMessage::Update { facts, .. }, .. } = output else {
                return None;
            };
            Some(facts.claims[0].yields)
        })
    };
    bench.agent.set_withdrawn(Some("why".into()), bench.now);
    assert_eq!(yields(&bench.outputs()), Some(true));
    bench.agent.set_withdrawn(None, bench.now);
    assert_eq!(yields(&bench.outputs()), Some(false));
}
