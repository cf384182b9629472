//! The cluster's root is changed: peers stay, the newest root is kept and confirmed, a retired one is believed no more.

use super::*;
use proto::{root::Fingerprint, root_list::RootList};

const AFTER: Duration = Duration::from_secs(2);

fn newer(seed: u8) -> RootSecret {
    RootSecret::from_seed(&[seed; 32])
}

/// The list that ends with these roots, oldest first.
fn list(roots: &[&RootSecret]) -> ServerMessage {
    let next = |pair: &[&RootSecret]| Statement::NextRoot(pair[1].public()).sign(NETWORK, pair[0]);
    ServerMessage::Roots(RootList { first: roots[0].public(), next: roots.windows(2).map(next).collect() })
}

/// The same words under another root.
fn under(root: &RootSecret, signed: &[u8]) -> Vec<u8> {
    Statement::trust(signed).unwrap().1.sign(NETWORK, root)
}

fn confirmed(outputs: &[Output]) -> Vec<Fingerprint> {
    let confirmed = |output: &Output| {
        let Output::Send { message: AgentMessage::Root(root), .. } = output else { return None };
        Some(*root)
    };
    outputs.iter().filter_map(confirmed).collect()
}

impl Bench {
    fn hear_server(&mut self, message: ServerMessage) -> Vec<Output> {
        self.say(ConnId(0), message);
        self.outputs()
    }
}

#[test]
fn a_peer_under_a_root_that_is_not_known_yet_stays_and_is_judged_again() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let new = newer(10);
    let outputs = bench.tell(
        3,
        [2, 3].map(|n| peer_object(n, "p", under(&new, &certificate(n, None)))).to_vec(),
        vec![],
    );
    assert_eq!((removals(&outputs), upserts(&outputs)), (vec![], vec![]));
    assert!(bench.agent.find_peer("b").is_some(), "as it was proved");
    let outputs = bench.hear_server(list(&[&root(), &new]));
    assert_eq!((removals(&outputs), upserts(&outputs)), (vec![], vec![key(2), key(3)]));
}

#[test]
fn the_newest_root_is_kept_first_and_confirmed_then_once() {
    let mut bench = Bench::served();
    let (second, third) = (newer(10), newer(11));
    let outputs = bench.hear_server(list(&[&root(), &second, &third]));
    assert!(outputs.contains(&Output::SaveState) && confirmed(&outputs).is_empty());
    let newest = third.public().fingerprint();
    assert_eq!(bench.agent.saved().pins().unwrap().newest, newest);
    assert!(confirmed(&bench.heartbeat(version(1), NOW_S)).is_empty(), "the disk may not have it yet");
    bench.at(AFTER);
    assert_eq!(confirmed(&bench.heartbeat(version(1), NOW_S)), [newest]);
    assert!(confirmed(&bench.heartbeat(version(1), NOW_S)).is_empty());
}

#[test]
fn a_root_is_given_up_only_for_a_certificate_under_a_newer_one() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.hear_server(list(&[&root(), &new]));
    bench.hear_server(list(&[&new]));
    let enrolled = |bench: &Bench| bench.agent.saved().is_enrolled();
    assert!(enrolled(&bench), "its own certificate stands under the root before");
    bench.hear_server(ServerMessage::Membership(under(&new, &certificate(1, None))));
    bench.hear_server(list(&[&new]));
    assert!(enrolled(&bench));
    let outputs = bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    assert!(upserts(&outputs).is_empty(), "the former root makes no member any more");
}

#[test]
fn a_member_under_a_retired_root_goes() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.tell(2, [2, 3].map(|n| peer_object(n, "p", certificate(n, None))).to_vec(), Vec::new());
    bench.hear_server(list(&[&root(), &new]));
    bench.hear_server(ServerMessage::Membership(under(&new, &certificate(1, None))));
    bench.tell(3, vec![peer_object(2, "p", under(&new, &certificate(2, None)))], Vec::new());
    assert_eq!(removals(&bench.hear_server(list(&[&new]))), [key(3)]);
}

#[test]
fn roots_that_do_not_follow_from_the_known_one_change_nothing() {
    let mut bench = Bench::served();
    let (stranger, other) = (newer(20), newer(21));
    assert!(bench.hear_server(list(&[&stranger, &other])).is_empty());
    let ServerMessage::Roots(mut forged) = list(&[&stranger, &other]) else { unreachable!() };
    forged.first = root().public();
    assert!(bench.hear_server(ServerMessage::Roots(forged)).is_empty());
    assert_eq!(bench.agent.pins().unwrap().newest, root().public().fingerprint());
}
