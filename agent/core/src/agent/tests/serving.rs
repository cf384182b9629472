//! What a node serves, what it routes to others who serve, and how it goes.

use super::*;
use crate::{agent::withdrawing::Withdrawn, status};
use ipnet::IpNet;
use proto::{
    claim::Claim,
    peer_message::{Apart, Body, PeerMessage, Probe, ProbeReply, Uses},
    rule::Rule,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn claim(prefix: &str) -> Claim {
    Claim::new(net(prefix))
}

fn granted(node: u8, issued_at: u64, claims: &[&str]) -> Vec<u8> {
    let membership = Membership {
        node_id: NodeId(node.into()),
        node_key: key(node),
        addresses: vec![[100, 64, 0, node].into()],
        claims: claims.iter().map(|claim| net(claim)).collect(),
        issued_at: UnixTime(issued_at),
        not_after: None,
    };
    Statement::Membership(membership).sign(NETWORK, &root())
}

fn claimer(node: u8, claims: &[&str]) -> Object {
    let peer = MapPeer {
        node_id: NodeId(node.into()),
        name: format!("p{node}"),
        membership: granted(node, NOW_S - 1000, claims),
        endpoints: vec![SocketAddr::from(([192, 0, 2, node], 51820))],
        os: String::new(),
        agent_version: String::new(),
        expires_at: None,
        ephemeral: false,
        claims: claims.iter().map(|prefix| claim(prefix)).collect(),
    };
    Object::new(&Content::Peer(peer), key(node).0.to_vec()).unwrap()
}

fn network() -> Object {
    let (overlay_v4, overlay_v6) = (net("100.64.0.0/10"), net("fd00:1::/48"));
    let network = proto::map::Network { name: "test".into(), overlay_v4, overlay_v6 };
    Object::new(&Content::Network(network), Vec::new()).unwrap()
}

/// The last one counts: what is routed beside the overlay, and what is served.
fn configured(outputs: &[Output]) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    outputs.iter().rev().find_map(|output| {
        let Output::Configure { overlay, served, .. } = output else { return None };
        Some((overlay.clone(), served.clone()))
    })
}

fn said(outputs: &[Output], node: u8) -> Vec<Body> {
    let message = |output: &Output| {
        let Output::Tunnel(TunnelCommand::Message { peer, payload, .. }) = output else { return None };
        (*peer == key(node)).then(|| PeerMessage::decode(payload).unwrap().body)
    };
    outputs.iter().filter_map(message).collect()
}

fn leaves(outputs: &[Output]) -> bool {
    outputs
        .iter()
        .any(|output| matches!(output, Output::Send { message: AgentMessage::Leave { logout: false }, .. }))
}

/// Whoever has these addresses may open everything at those.
fn rule(id: u8, sources: &[&str], destinations: &[&str]) -> Object {
    let nets = |texts: &[&str]| texts.iter().map(|text| net(text)).collect();
    let rule = Rule { destinations: nets(destinations), ..Rule::all_from(nets(sources)) };
    Object::new(&Content::Rule(rule), vec![id]).unwrap()
}

/// Serves one address, with a tunnel to one client, which may open everything.
fn serving() -> Bench {
    let mut bench = Bench::connected_to(&[2]);
    bench.tell(10, vec![rule(1, &["100.64.0.0/10"], &[])], Vec::new());
    bench.agent.set_claims(vec![claim("10.9.0.1/32")], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1, NOW_S, &["10.9.0.0/24"])));
    bench.outputs();
    bench
}

#[test]
fn a_claim_is_served_once_it_is_granted_and_says_before_what_to_do() {
    let mut bench = Bench::served();
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.8.0.0/24")], bench.now);
    let outputs = bench.outputs();
    assert_eq!(configured(&outputs).unwrap().1, []);
    let told = |output: &Output| matches!(output, Output::Send { message: AgentMessage::Update { facts, .. }, .. } if facts.claims.len() == 2);
    assert!(outputs.iter().any(told), "servers hear what it claims");
    let status = bench.agent.status(bench.now);
    assert!(status.own.claims[0].reason.as_ref().unwrap().contains("allow-claim 100.64.0.1 "));
    bench.say(ConnId(0), ServerMessage::Membership(granted(1, NOW_S, &["10.9.0.0/16"])));
    assert_eq!(configured(&bench.outputs()).unwrap().1, [net("10.9.0.1/32")]);
    let states: Vec<status::OwnClaimState> =
        bench.agent.status(bench.now).own.claims.iter().map(|claim| claim.state).collect();
    assert_eq!(states, [status::OwnClaimState::Served, status::OwnClaimState::Refused]);
    bench.agent.set_claims(Vec::new(), bench.now);
    assert_eq!(configured(&bench.outputs()).unwrap().1, []);
}

#[test]
fn the_own_address_of_another_node_is_not_served_whatever_was_granted() {
    let mut bench = Bench::served();
    bench.tell(2, vec![network(), claimer(2, &[])], Vec::new());
    bench.agent.set_claims(vec![claim("100.64.0.2/32"), claim("100.64.0.3/32")], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1, NOW_S, &["100.64.0.2/31"])));
    let outputs = bench.outputs();
    assert_eq!(configured(&outputs).unwrap().1, [net("100.64.0.3/32")], "the other one is free");
    let reason = bench.agent.status(bench.now).own.claims[0].reason.clone().unwrap();
    assert!(reason.contains("own address of p2"), "{reason}");
    let outputs = bench.tell(3, Vec::new(), vec![ObjectId::peer(key(2))]);
    let both = [net("100.64.0.2/32"), net("100.64.0.3/32")];
    assert_eq!(configured(&outputs).unwrap().1, both, "its owner is gone");
    let outputs = bench.tell(4, vec![claimer(2, &[])], Vec::new());
    assert_eq!(configured(&outputs).unwrap().1, [net("100.64.0.3/32")], "its owner is back");
}

#[test]
fn the_own_address_is_not_claimed_on_top() {
    let mut bench = Bench::served();
    bench.agent.set_claims(vec![claim("100.64.0.1/32")], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1, NOW_S, &["100.64.0.1/32"])));
    assert_eq!(configured(&bench.outputs()).unwrap().1, []);
    assert!(bench.agent.status(bench.now).own.claims[0].reason.as_ref().unwrap().contains("own address"));
}

#[test]
fn an_address_that_another_claims_within_a_served_part_of_the_overlay_is_stood_in_for_and_nothing_else_is() {
    let mut bench = Bench::connected_to(&[2]);
    bench.agent.set_claims(vec![claim("100.64.0.2/31"), claim("10.9.0.0/24")], bench.now);
    bench.say(ConnId(0), ServerMessage::Membership(granted(1, NOW_S, &["100.64.0.2/31", "10.9.0.0/24"])));
    let mine = [net("100.64.0.2/31"), net("10.9.0.0/24")];
    assert_eq!(configured(&bench.outputs()).unwrap().1, mine);
    // 100.64.0.2 is node 2's own, and 10.9.0.0/24 is a network behind us.
    let claims = ["100.64.0.3/32", "100.64.0.2/32", "100.64.0.4/32", "10.9.0.7/32"];
    let outputs = bench.tell(3, vec![network(), claimer(9, &claims)], Vec::new());
    assert_eq!(configured(&outputs).unwrap().1[2..], [net("100.64.0.3/32")]);
    let outputs = bench.tell(4, vec![claimer(9, &[])], Vec::new());
    assert_eq!(configured(&outputs).unwrap().1, mine);
}

#[test]
fn hosts_are_routed_subnets_where_accepted_and_never_over_the_machines_own_networks() {
    let mut bench = Bench::served();
    bench.agent.handle_networks(vec![net("192.168.1.7/24")], bench.now);
    let claims = ["10.9.0.1/32", "10.8.0.0/24", "192.168.0.0/16"];
    let outputs = bench.tell(2, vec![claimer(2, &claims)], Vec::new());
    let is_routed = |outputs: &[Output], prefix: &str| configured(outputs).unwrap().0.contains(&net(prefix));
    assert_eq!(claims.map(|prefix| is_routed(&outputs, prefix)), [true, false, false]);
    let mut config = ClaimsConfig { accept_routes: true, ..ClaimsConfig::default() };
    bench.agent.set_claims_config(config.clone(), bench.now);
    let outputs = bench.outputs();
    assert_eq!(claims.map(|prefix| is_routed(&outputs, prefix)), [true, true, false]);
    let warnings = bench.agent.status(bench.now).warnings;
    assert!(
        warnings.iter().any(|w| w.contains("192.168.0.0/16") && w.contains("192.168.1.0/24")),
        "{warnings:?}"
    );
    bench.agent.handle_networks(Vec::new(), bench.now);
    assert!(is_routed(&bench.outputs(), "192.168.0.0/16"));
    config.accept_routes = false;
    bench.agent.set_claims_config(config, bench.now);
    assert!(!is_routed(&bench.outputs(), "10.8.0.0/24"));
}

#[test]
fn a_whole_map_of_claims_configures_the_interface_once() {
    let mut bench = Bench::served();
    let prefixes: Vec<String> = (0..50).map(|at| format!("10.9.0.{at}/32")).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    let outputs = bench.tell(2, vec![claimer(2, &prefixes), claimer(3, &prefixes)], Vec::new());
    let configured = |output: &&Output| matches!(output, Output::Configure { .. });
    assert_eq!(outputs.iter().filter(configured).count(), 1);
}

#[test]
fn one_that_serves_goes_when_its_users_have_moved_and_answers_meanwhile() {
    let mut bench = serving();
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::Some }));
    assert_eq!(bench.agent.status(bench.now).own.users, 1);
    bench.agent.drain(bench.now);
    let outputs = bench.outputs();
    assert_eq!(said(&outputs, 2), [Body::Leaving]);
    assert!(!leaves(&outputs) && !bench.agent.has_left());
    let outputs = bench.at(Duration::from_millis(400));
    assert_eq!(said(&outputs, 2), [Body::Leaving], "it may have been lost");
    bench.now = START + Duration::from_millis(500);
    let outputs = bench.hear(2, Body::Probe(Probe { id: 2, uses: Uses::None }));
    assert!(matches!(&said(&outputs, 2)[..], [Body::ProbeReply(reply)] if reply.is_leaving));
    assert!(!leaves(&bench.at(Duration::from_millis(799))));
    assert!(leaves(&bench.at(Duration::from_millis(800))));
    assert!(bench.agent.has_left());
}

#[test]
fn users_that_stay_are_waited_for_three_seconds_and_not_at_all_when_asked_again() {
    for again in [false, true] {
        let mut bench = serving();
        bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::Some }));
        bench.agent.drain(bench.now);
        bench.at(Duration::from_millis(2_999));
        assert!(!bench.agent.has_left());
        if again {
            bench.agent.drain(bench.now);
        } else {
            bench.at(Duration::from_secs(3));
        }
        assert!(bench.agent.has_left());
    }
}

#[test]
fn one_that_serves_nothing_goes_at_once() {
    let mut bench = Bench::connected_to(&[2]);
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::Some }));
    bench.agent.drain(bench.now);
    assert!(leaves(&bench.outputs()) && bench.agent.has_left());
}

#[test]
fn a_user_that_says_no_more_or_goes_is_forgotten() {
    let mut bench = serving();
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::Some }));
    bench.at(Duration::from_secs(8));
    assert_eq!(bench.agent.status(bench.now).own.users, 0);
    bench.hear(2, Body::Probe(Probe { id: 2, uses: Uses::Some }));
    assert_eq!(bench.agent.status(bench.now).own.users, 1);
    bench.hear(2, Body::Leaving);
    assert_eq!(bench.agent.status(bench.now).own.users, 0);
}

#[test]
fn a_client_moves_from_one_that_leaves_and_tells_it_so() {
    let mut bench = Bench::served();
    let claims = ["10.9.0.1/32"];
    bench.tell(2, vec![claimer(2, &claims), claimer(3, &claims)], Vec::new());
    for node in [2, 3] {
        let endpoint = SocketAddr::from(([192, 0, 2, node], 51820));
        bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(node), endpoint }, bench.now);
    }
    assert_eq!(bench.agent.status(bench.now).claims[0].active.as_deref(), Some("p2"));
    bench.outputs();
    let outputs = bench.hear(2, Body::Leaving);
    assert_eq!(bench.agent.status(bench.now).claims[0].active.as_deref(), Some("p3"));
    let last = said(&outputs, 2).into_iter().last();
    assert!(matches!(last, Some(Body::Probe(Probe { uses: Uses::None, .. }))), "{last:?}");
}

#[test]
fn one_that_serves_says_how_it_stands_to_a_peer_with_a_new_tunnel() {
    let mut bench = serving();
    bench.tell(13, vec![peer_object(3, "p3", certificate(3, None))], Vec::new());
    let endpoint = SocketAddr::from(([192, 0, 2, 3], 51820));
    bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(3), endpoint }, bench.now);
    let told = said(&bench.outputs(), 3);
    assert!(told.iter().any(|body| matches!(body, Body::ProbeReply(reply) if !reply.is_leaving)), "{told:?}");
}

#[test]
fn what_is_withdrawn_is_told_at_once_and_until_users_have_moved_and_stays_configured() {
    let mut bench = serving();
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::These(vec![net("10.9.0.1/32")]) }));
    bench.agent.set_withdrawn(Some("check tcp:80 failed 3 times".into()), bench.now);
    let outputs = bench.outputs();
    let withdrawn = |outputs: &[Output]| {
        said(outputs, 2)
            .iter()
            .any(|body| matches!(body, Body::ProbeReply(reply) if reply.is_withdrawn && !reply.is_leaving))
    };
    assert!(withdrawn(&outputs) && configured(&outputs).is_none(), "{outputs:?}");
    let own = bench.agent.status(bench.now).own.claims;
    assert_eq!((own[0].state, own[0].users), (status::OwnClaimState::Withdrawn, 1));
    assert_eq!(own[0].reason.as_deref(), Some("check tcp:80 failed 3 times"));
    assert!(withdrawn(&bench.at(Duration::from_millis(300))), "it may have been lost");
    bench.now = START + Duration::from_millis(400);
    bench.hear(2, Body::Probe(Probe { id: 2, uses: Uses::None }));
    assert!(!withdrawn(&bench.at(Duration::from_millis(600))));
    bench.agent.set_withdrawn(None, bench.now);
    let told = said(&bench.outputs(), 2);
    assert!(
        matches!(&told[..], [Body::ProbeReply(reply)] if !reply.is_withdrawn && reply.uptime.is_zero()),
        "{told:?}"
    );
}

fn last_reply(outputs: &[Output]) -> ProbeReply {
    let reply = |body| if let Body::ProbeReply(reply) = body { Some(reply) } else { None };
    let mut replies = said(outputs, 2).into_iter().filter_map(reply);
    replies.next_back().expect("it said how it stands")
}

#[test]
fn what_the_machine_cannot_serve_is_withdrawn_alone_and_its_users_are_told_until_they_have_moved() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.9.0.2/32")], bench.now);
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::of(vec![net("10.9.0.1/32"), net("10.9.0.2/32")]) }));
    let unserved = [(net("10.9.0.2/32"), "it cannot be set".to_owned())];
    bench.agent.set_unserved(unserved.into(), bench.now);
    let reply = last_reply(&bench.outputs());
    assert_eq!(
        (reply.is_withdrawn, &reply.apart[..]),
        (false, &[Apart { prefix: net("10.9.0.2/32"), uptime: None }][..])
    );
    let own = bench.agent.status(bench.now).own.claims;
    assert_eq!(
        [own[0].state, own[1].state],
        [status::OwnClaimState::Served, status::OwnClaimState::Withdrawn]
    );
    assert_eq!(own[1].reason.as_deref(), Some("it cannot be set"));
    assert!(last_reply(&bench.at(Duration::from_millis(300))).withdraws(), "it may have been lost");
    bench.now = START + Duration::from_millis(400);
    bench.hear(2, Body::Probe(Probe { id: 2, uses: Uses::of(vec![net("10.9.0.1/32")]) }));
    assert_eq!(said(&bench.at(Duration::from_millis(700)), 2), [], "who uses the other claim need not move");
    bench.agent.set_unserved(BTreeMap::new(), bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(!reply.withdraws() && !reply.uptime.is_zero(), "{reply:?}");
    assert_eq!(reply.apart, [Apart { prefix: net("10.9.0.2/32"), uptime: Some(Duration::ZERO) }]);
}

#[test]
fn who_cannot_stand_in_for_an_address_withdraws_the_claim_that_has_it_do_so() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.0/31"), claim("10.9.0.1/32")], bench.now);
    let mut withdrawn = |prefix: &str| {
        bench.agent.set_unserved([(net(prefix), "why".to_owned())].into(), bench.now);
        let own = bench.agent.status(bench.now).own.claims.into_iter();
        own.map(|claim| claim.state == status::OwnClaimState::Withdrawn).collect::<Vec<_>>()
    };
    assert_eq!(withdrawn("10.9.0.0/32"), [true, false]);
    assert_eq!(withdrawn("10.9.0.1/32"), [false, true]);
    assert_eq!(withdrawn("10.9.0.5/32"), [false, false]);
}

#[test]
fn more_withdrawn_claims_than_a_message_names_are_all_and_what_many_restored_is_as_new_as_the_newest() {
    let mut bench = serving();
    let claims: Vec<Claim> = (0..40).map(|last| claim(&format!("10.9.0.{last}/32"))).collect();
    bench.agent.set_claims(claims.clone(), bench.now);
    let unserved = claims.iter().map(|claim| (claim.prefix, "why".to_owned()));
    bench.agent.set_unserved(unserved.skip(1).collect(), bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(reply.is_withdrawn && reply.apart.is_empty(), "{reply:?}");
    bench.at(Duration::from_secs(2));
    bench.agent.set_unserved(BTreeMap::new(), bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(!reply.withdraws() && reply.uptime.is_zero() && reply.apart.is_empty(), "{reply:?}");
}

#[test]
fn a_claim_that_was_taken_back_is_withdrawn_for_those_whom_no_server_told_and_claimed_again_it_is_new() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.2/32")], bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(reply.apart.contains(&Apart { prefix: net("10.9.0.1/32"), uptime: None }), "{reply:?}");
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.9.0.2/32")], bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(
        reply.apart.contains(&Apart { prefix: net("10.9.0.1/32"), uptime: Some(Duration::ZERO) }),
        "{reply:?}"
    );
    bench.agent.set_claims(Vec::new(), bench.now);
    assert!(last_reply(&bench.outputs()).is_withdrawn);
    bench.at(Duration::from_secs(5));
    bench.agent.set_claims(vec![claim("10.9.0.1/32")], bench.now);
    let reply = last_reply(&bench.outputs());
    assert!(!reply.is_withdrawn && reply.uptime.is_zero(), "{reply:?}");
}

#[test]
fn who_restarted_without_a_claim_says_so_in_each_answer() {
    let mut bench = serving();
    let listed = |bench: &mut Bench| {
        let outputs = bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::None }));
        last_reply(&outputs).claims
    };
    assert_eq!(listed(&mut bench), Some(vec![net("10.9.0.1/32")]));
    bench.agent.set_claims(Vec::new(), bench.now);
    // As a new process.
    bench.agent.withdrawn = Withdrawn::default();
    assert_eq!(listed(&mut bench), Some(Vec::new()));
}

#[test]
fn a_claim_that_is_added_to_a_running_node_is_a_newcomer_and_users_of_one_taken_back_are_told_again() {
    let mut bench = serving();
    let apart = |reply: ProbeReply| {
        reply.apart.into_iter().map(|apart| (apart.prefix, apart.uptime)).collect::<Vec<_>>()
    };
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::of(vec![net("10.9.0.1/32")]) }));
    bench.agent.set_claims(vec![claim("10.9.0.2/32")], bench.now);
    let mut expected = vec![(net("10.9.0.2/32"), Some(Duration::ZERO)), (net("10.9.0.1/32"), None)];
    assert_eq!(apart(last_reply(&bench.outputs())), expected);
    expected[0].1 = Some(Duration::from_millis(300));
    assert_eq!(apart(last_reply(&bench.at(Duration::from_millis(300)))), expected, "it may have been lost");
    bench.now = START + Duration::from_millis(400);
    bench.hear(2, Body::Probe(Probe { id: 2, uses: Uses::None }));
    assert_eq!(said(&bench.at(Duration::from_millis(700)), 2), []);
}

#[test]
fn a_claim_taken_back_while_it_was_not_served_is_not_restored() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.9.0.2/32")], bench.now);
    bench.agent.set_unserved([(net("10.9.0.2/32"), "why".to_owned())].into(), bench.now);
    bench.agent.set_claims(vec![claim("10.9.0.1/32")], bench.now);
    let reply = last_reply(&bench.outputs());
    assert_eq!(reply.apart, [Apart { prefix: net("10.9.0.2/32"), uptime: None }]);
}

#[test]
fn users_that_do_not_move_are_told_for_three_seconds() {
    let mut bench = serving();
    bench.agent.set_withdrawn(Some("why".into()), bench.now);
    for second in 0..6 {
        bench.now = START + Duration::from_secs(second);
        bench.hear(2, Body::Probe(Probe { id: second, uses: Uses::Some }));
        let told = said(&bench.at(Duration::from_millis(second * 1000 + 900)), 2).len();
        assert_eq!(told > 0, second <= 3, "after {second} s: {told}");
    }
}

#[test]
fn who_may_open_nothing_at_a_claim_is_no_user_of_it_whatever_it_says() {
    let mut bench = serving();
    let (mine, others) = (net("10.9.0.1/32"), net("10.9.0.2/32"));
    bench.agent.set_claims(vec![Claim::new(mine), Claim::new(others)], bench.now);
    // Node 2 may open the second one only, and node 3 anything.
    let rules = vec![rule(1, &["100.64.0.2/32"], &["10.9.0.2/32"]), rule(2, &["100.64.0.3/32"], &[])];
    bench.tell(11, rules, Vec::new());
    let mut says = |second: u64, uses: Uses| {
        bench.at(Duration::from_secs(second));
        bench.hear(2, Body::Probe(Probe { id: 1, uses }));
        let users = bench.agent.status(bench.now).own;
        (users.claims.iter().map(|claim| claim.users).collect::<Vec<u64>>(), users.users)
    };
    assert_eq!(says(0, Uses::These(vec![mine])), (vec![0, 0], 0));
    assert_eq!(says(1, Uses::These(vec![mine, others])), (vec![0, 1], 1));
    assert_eq!(says(2, Uses::Some), (vec![0, 1], 1));
    // Rules that end it are looked at with its next word.
    bench.tell(12, Vec::new(), vec![ObjectId::rule(vec![1])]);
    bench.at(Duration::from_secs(3));
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::Some }));
    assert_eq!(bench.agent.status(bench.now).own.users, 0);
    bench.agent.drain(bench.now);
    bench.at(Duration::from_millis(3300));
    assert!(!bench.agent.has_left(), "it may answer what hosts behind this node have opened");
    bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::None }));
    bench.at(Duration::from_millis(3600));
    assert!(bench.agent.has_left());
}

#[test]
fn who_counted_for_all_that_it_uses_counts_no_more_with_its_next_word_after_the_rules_changed() {
    let mut bench = serving();
    let word = || Body::Probe(Probe { id: 1, uses: Uses::These(vec![net("10.9.0.1/32")]) });
    bench.hear(2, word());
    assert_eq!(bench.agent.status(bench.now).own.users, 1);
    bench.tell(11, vec![rule(1, &["100.64.0.3/32"], &[])], Vec::new());
    bench.at(Duration::from_secs(2));
    bench.hear(2, word());
    assert_eq!(bench.agent.status(bench.now).own.users, 0);
}

#[test]
fn however_often_a_peer_says_something_else_it_is_judged_once_a_second() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.9.0.2/32")], bench.now);
    let counted = |bench: &Bench| -> Vec<u64> {
        bench.agent.status(bench.now).own.claims.iter().map(|claim| claim.users).collect()
    };
    let these = |claim: &str| Uses::These(vec![net(claim)]);
    for (uses, expected) in [
        (these("10.9.0.1/32"), [1, 0]),
        (these("10.9.0.2/32"), [0, 0]),
        (Uses::None, [0, 0]),
        (these("10.9.0.2/32"), [0, 0]),
    ] {
        bench.hear(2, Body::Probe(Probe { id: 1, uses }));
        assert_eq!(counted(&bench), expected);
    }
    bench.at(Duration::from_millis(999));
    assert_eq!(counted(&bench), [0, 0]);
    bench.at(Duration::from_secs(1));
    assert_eq!(counted(&bench), [0, 1], "without another word");
}

#[test]
fn use_of_a_part_counts_for_the_longest_claim_around_it() {
    let mut bench = serving();
    let claims = ["10.9.0.0/31", "10.9.0.0/24"].map(claim).to_vec();
    bench.agent.set_claims(claims, bench.now);
    // Those of whom it stands in, as they are gone.
    for (second, used, users) in
        [(0, "10.9.0.1/32", [1, 0]), (1, "10.9.0.2/32", [0, 1]), (2, "10.9.1.0/24", [0, 0])]
    {
        bench.at(Duration::from_secs(second));
        bench.hear(2, Body::Probe(Probe { id: 1, uses: Uses::These(vec![net(used)]) }));
        let counted: Vec<u64> =
            bench.agent.status(bench.now).own.claims.iter().map(|claim| claim.users).collect();
        assert_eq!(counted, users, "{used}");
    }
}

#[test]
fn the_number_of_users_of_each_claim_is_told_when_it_changes() {
    let mut bench = serving();
    bench.agent.set_claims(vec![claim("10.9.0.1/32"), claim("10.9.0.2/32")], bench.now);
    bench.outputs();
    let told = |outputs: &[Output]| -> Vec<(String, u64)> {
        let notice = |output: &Output| {
            let Output::Notice(Notice::Users { prefix, users }) = output else { return None };
            Some((prefix.to_string(), *users))
        };
        outputs.iter().filter_map(notice).collect()
    };
    let one = Uses::These(vec![net("10.9.0.1/32")]);
    let first = ("10.9.0.1/32".to_owned(), 1);
    assert_eq!(told(&bench.hear(2, Body::Probe(Probe { id: 1, uses: one.clone() }))), [first]);
    assert_eq!(told(&bench.hear(2, Body::Probe(Probe { id: 2, uses: one.clone() }))), []);
    bench.at(Duration::from_secs(1));
    let all = told(&bench.hear(2, Body::Probe(Probe { id: 3, uses: Uses::Some })));
    assert_eq!(all, [("10.9.0.2/32".to_owned(), 1)], "who names none counts for all");
    let back = told(&bench.hear(2, Body::Probe(Probe { id: 4, uses: one })));
    assert_eq!(back, [("10.9.0.2/32".to_owned(), 0)]);
    assert_eq!(told(&bench.at(Duration::from_secs(7))), []);
    assert_eq!(told(&bench.at(Duration::from_secs(8))), [("10.9.0.1/32".to_owned(), 0)]);
}

#[test]
fn a_client_that_has_moved_from_one_that_withdrew_says_so_whenever_it_is_told() {
    let mut bench = Bench::served();
    let claims = ["10.9.0.1/32"];
    bench.tell(2, vec![claimer(2, &claims), claimer(3, &claims)], Vec::new());
    for node in [2, 3] {
        let endpoint = SocketAddr::from(([192, 0, 2, node], 51820));
        bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(node), endpoint }, bench.now);
    }
    bench.outputs();
    let withdrawn = ProbeReply {
        id: 0,
        uptime: Duration::from_secs(60),
        is_leaving: false,
        is_withdrawn: true,
        apart: Vec::new(),
        claims: None,
    };
    for _ in 0..2 {
        let outputs = bench.hear(2, Body::ProbeReply(withdrawn.clone()));
        assert_eq!(bench.agent.status(bench.now).claims[0].active.as_deref(), Some("p3"));
        let last = said(&outputs, 2).into_iter().last();
        assert!(matches!(last, Some(Body::Probe(Probe { uses: Uses::None, .. }))), "{last:?}");
    }
}

#[test]
fn what_ran_to_the_former_node_is_reset_after_the_prefix_moved_and_told() {
    let mut bench = Bench::served();
    let address = "10.9.0.1/32";
    bench.tell(2, vec![claimer(2, &[address]), claimer(3, &[address])], Vec::new());
    let from = bench.agent.claims.active(&net(address)).unwrap();
    let (from, to) = if from == key(2) { (2, 3) } else { (3, 2) };
    let outputs = bench.tell(3, vec![claimer(from, &[])], Vec::new());
    let is_moved = |output: &Output| matches!(output, Output::Tunnel(TunnelCommand::Upsert { peer, allowed_ips, .. }) if *peer == key(to) && allowed_ips.contains(&net(address)));
    let reset = Output::Tunnel(TunnelCommand::Reset { prefix: net(address), from: key(from) });
    let moved = outputs.iter().position(is_moved).unwrap();
    assert!(outputs.iter().position(|output| *output == reset).unwrap() > moved, "{outputs:?}");
    let event = TunnelEvent::Reset { prefix: net(address), from: key(from), connections: 3 };
    bench.agent.handle_tunnel(event, bench.now);
    let notice = Notice::Reset { prefix: net(address), from: key(from), to: Some(key(to)), connections: 3 };
    assert!(bench.outputs().contains(&Output::Notice(notice)));
}
