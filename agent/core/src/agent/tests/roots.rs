//! The cluster's root is changed: peers stay, the newest root is kept and confirmed, a retired one is believed no more.

use super::*;
use proto::{root::Fingerprint, root_list::RootList};

const AFTER: Duration = Duration::from_secs(2);

fn newer(seed: u8) -> RootSecret {
    RootSecret::from_seed(&[seed; 32])
}

/// The list that ends with these roots, oldest first.
fn list(roots: &[&RootSecret]) -> ServerMessage {
    list_at(1, roots)
}

/// Of a server that is at this revision.
fn list_at(revision: u64, roots: &[&RootSecret]) -> ServerMessage {
    let next = |pair: &[&RootSecret]| Statement::NextRoot(pair[1].public()).sign(NETWORK, pair[0]);
    let next = roots.windows(2).map(next).collect();
    ServerMessage::Roots(RootList { first: roots[0].public(), next, after: version(revision) })
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

    fn kept(&mut self, root: Option<Fingerprint>) -> Vec<Output> {
        self.agent.handle_root_kept(root, self.now);
        self.outputs()
    }

    fn dialled(&mut self) -> ConnId {
        let dial = self.outputs().into_iter().find_map(|output| {
            let Output::Dial(dial) = output else { return None };
            Some(dial.conn)
        });
        dial.expect("a dial")
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
fn the_newest_root_is_confirmed_when_the_disk_has_it_and_then_once() {
    let mut bench = Bench::served();
    let (second, third) = (newer(10), newer(11));
    let outputs = bench.hear_server(list(&[&root(), &second, &third]));
    assert!(outputs.contains(&Output::SaveState) && confirmed(&outputs).is_empty());
    let newest = third.public().fingerprint();
    assert_eq!(bench.agent.saved().pins().unwrap().newest, newest);
    bench.at(AFTER);
    let earlier = root().public().fingerprint();
    assert!(confirmed(&bench.kept(Some(earlier))).is_empty(), "what was written is an older state");
    assert!(confirmed(&bench.heartbeat(version(1), NOW_S)).is_empty());
    assert!(bench.at(AFTER * 2).contains(&Output::SaveState), "a disk that was full may not be any more");
    assert_eq!(confirmed(&bench.kept(Some(newest))), [newest]);
    assert!(confirmed(&bench.heartbeat(version(1), NOW_S)).is_empty());
    assert!(confirmed(&bench.kept(Some(newest))).is_empty());
}

#[test]
fn hello_confirms_what_the_disk_has_and_nothing_else() {
    let hello = |bench: &mut Bench, conn: ConnId| {
        bench.agent.handle_connected(conn, Connected { server: ServerId([1; 16]) }, bench.now);
        bench.outputs().into_iter().find_map(|output| {
            let Output::Send { message: AgentMessage::Hello(hello), .. } = output else { return None };
            Some(hello.root)
        })
    };
    let saved = Bench::served().agent.saved();
    let newest = root().public().fingerprint();
    for kept in [None, Some(newer(10).public().fingerprint()), Some(newest)] {
        let mut bench = Bench::started(saved.clone(), None);
        let conn = bench.dialled();
        bench.kept(kept);
        assert_eq!(hello(&mut bench, conn), Some(kept.filter(|kept| *kept == newest)));
    }
}

#[test]
fn a_list_that_is_ahead_of_the_map_ends_no_tunnel_and_lets_nothing_new_in() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.tell(2, [2, 3].map(|n| peer_object(n, "p", certificate(n, None))).to_vec(), Vec::new());
    bench.hear_server(list(&[&root(), &new]));
    bench.hear_server(ServerMessage::Membership(under(&new, &certificate(1, None))));
    let outputs = bench.hear_server(list_at(9, &[&new]));
    assert_eq!((removals(&outputs), upserts(&outputs)), (vec![], vec![]));
    assert_eq!(upserts(&bench.tell(3, vec![peer_object(4, "d", certificate(4, None))], vec![])), []);
    let removal = Removal { node_key: key(2), removed_at: UnixTime(NOW_S), until: None };
    let signed = Statement::Removal(removal).sign(NETWORK, &root());
    let object = Object::new(&Content::Removal(signed), key(2).0.to_vec()).unwrap();
    assert_eq!(removals(&bench.tell(4, vec![object.clone()], vec![])), []);
    bench.tell(5, vec![peer_object(2, "p", under(&new, &certificate(2, None)))], vec![object.id]);
    assert_eq!(removals(&bench.heartbeat(version(9), NOW_S)), [], "the map lags behind the server");
    bench.told = version(9);
    assert_eq!(removals(&bench.heartbeat(version(9), NOW_S)), [key(3)]);
    assert!(bench.agent.saved().pins().unwrap().knows(root().public().fingerprint()), "to name it");
}

#[test]
fn a_restart_before_the_map_is_level_ends_no_tunnel_either() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.tell(9, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    bench.hear_server(list(&[&root(), &new]));
    bench.hear_server(list_at(9, &[&new]));
    let cached = cache::decode(&bench.agent.map_cache()).unwrap();
    let mut again = Bench::started(bench.agent.saved(), Some(cached));
    let conn = again.dialled();
    again.connect(conn);
    again.say(conn, ServerMessage::Membership(under(&new, &certificate(1, None))));
    assert!(again.agent.find_peer("b").is_some(), "a cache is not known to be whole");
}

#[test]
fn a_root_is_given_up_only_for_a_certificate_under_a_newer_one() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.tell(2, vec![peer_object(3, "c", certificate(3, None))], Vec::new());
    bench.hear_server(list(&[&root(), &new]));
    assert_eq!(removals(&bench.hear_server(list_at(2, &[&new]))), []);
    let enrolled = |bench: &Bench| bench.agent.saved().is_enrolled();
    assert!(enrolled(&bench), "its own certificate stands under the root before");
    let outputs = bench.hear_server(ServerMessage::Membership(under(&new, &certificate(1, None))));
    assert_eq!(removals(&outputs), [key(3)], "nobody tells the list again");
    assert!(enrolled(&bench) && outputs.contains(&Output::SaveState));
    let outputs = bench.tell(3, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    assert!(upserts(&outputs).is_empty(), "the former root makes no member any more");
}

#[test]
fn a_member_under_a_retired_root_goes_with_the_map_that_does_without_it() {
    let mut bench = Bench::served();
    let new = newer(10);
    bench.tell(2, [2, 3].map(|n| peer_object(n, "p", certificate(n, None))).to_vec(), Vec::new());
    bench.hear_server(list(&[&root(), &new]));
    bench.hear_server(ServerMessage::Membership(under(&new, &certificate(1, None))));
    assert_eq!(removals(&bench.hear_server(list_at(3, &[&new]))), []);
    let outputs = bench.tell(3, vec![peer_object(2, "p", under(&new, &certificate(2, None)))], Vec::new());
    assert_eq!(removals(&outputs), [key(3)]);
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
