//! A server that holds the cluster's certificate and behaves as none does: it is left, for a while, and the reason is shown.

use super::*;
use crate::io::Closed;
use proto::session::Presence;

impl Bench {
    /// Why the connection was closed, if it was.
    fn left(&mut self) -> Option<String> {
        let closed = |output: &Output| matches!(output, Output::Close { conn: ConnId(0) });
        let is_closed = self.outputs().iter().any(closed);
        let told = self.agent.status(self.now).control.servers[0].last_error.clone();
        told.filter(|_| is_closed)
    }

    fn fetch_hint(&mut self) {
        self.say(ConnId(0), ServerMessage::Fetch(version(2)));
        assert_eq!(fetches(&self.outputs()), 1);
    }

    /// A part of a map with these objects.
    fn part(&mut self, put: Vec<Object>) {
        let part = Delta { version: version(2), put, ..Delta::default() };
        self.agent.handle_fetched(ConnId(0), part, self.now);
    }
}

fn junk(number: u32, size: usize) -> Object {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    Object { id: ObjectId::peer(PublicKey(id)), content: vec![0xff; size] }
}

#[test]
fn a_map_without_end_is_left_and_only_what_was_proven_of_it_is_kept() {
    for size in [10, 100_000] {
        let mut bench = Bench::served();
        bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
        bench.fetch_hint();
        let mut sent = 0;
        let why = loop {
            let objects = 400_000 / size.max(400);
            bench.part((0..objects).map(|step| junk((sent + step) as u32, size)).collect());
            sent += objects;
            if let Some(why) = bench.left() {
                break why;
            }
            assert!(sent <= 60_000, "it takes whatever comes");
        };
        assert!(why.contains("larger than any network"), "{why}");
        assert_eq!(bench.agent.netmap.objects().len(), 1, "another server goes on from here");
        assert!(bench.agent.find_peer("b").is_some());
        let again = bench.at(Duration::from_secs(9));
        assert!(
            !again.iter().any(|output| matches!(output, Output::Dial(_))),
            "it is left alone for a while"
        );
    }
}

#[test]
fn a_fetch_that_brings_nothing_is_left_after_5_s_however_often_it_says_so() {
    let mut bench = Bench::served();
    bench.fetch_hint();
    for step in 1..=9 {
        bench.now = START + Duration::from_millis(500 * step);
        bench.part(Vec::new());
    }
    bench.agent.expire_fetch();
    assert!(bench.agent.fetching.is_some(), "it may still come");
    bench.agent.now = START + Duration::from_secs(5);
    bench.agent.expire_fetch();
    let why = bench.left().expect("it is left");
    assert!(why.contains("does not send its map"), "{why}");
}

#[test]
fn a_fetch_that_brings_a_little_for_ever_is_left_after_two_minutes() {
    let mut bench = Bench::served();
    bench.fetch_hint();
    for step in 0..30 {
        bench.part(vec![junk(step, 10)]);
        let ends_at = bench.agent.fetching.expect("it is under way").give_up_at;
        assert!(ends_at <= START + Duration::from_secs(120));
        bench.now = bench.now + Duration::from_secs(4);
        bench.agent.now = bench.now;
    }
    bench.agent.expire_fetch();
    assert!(bench.left().is_some());
}

#[test]
fn a_flood_is_left_and_a_busy_second_is_not() {
    let mut bench = Bench::served();
    let ack = || ServerMessage::Presence(Presence::default());
    for _ in 0..4000 {
        bench.say(ConnId(0), ack());
    }
    assert_eq!(bench.left(), None);
    for _ in 0..2000 {
        bench.say(ConnId(0), ack());
    }
    let why = bench.left().expect("it is left");
    assert!(why.contains("floods"), "{why}");
}

#[test]
fn presence_of_nodes_without_end_is_left() {
    let mut bench = Bench::served();
    let why = (0..100).find_map(|part| {
        let online = (part * 4096..(part + 1) * 4096).map(NodeId).collect();
        let presence = Presence { online, ..Presence::default() };
        bench.say(ConnId(0), ServerMessage::Presence(presence));
        bench.left()
    });
    assert!(why.is_some_and(|why| why.contains("more nodes")));
    assert!(bench.agent.online.len() <= 100_000);
}

#[test]
fn what_breaks_the_protocol_keeps_the_tunnels_and_is_shown() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let why = Closed::Broken("it sent what cannot be valid".into());
    bench.agent.handle_closed(ConnId(0), &why, bench.now);
    assert!(removals(&bench.outputs()).is_empty());
    let status = bench.agent.status(bench.now);
    assert_eq!(status.control.servers[0].last_error.as_deref(), Some("it sent what cannot be valid"));
    let early = bench.at(Duration::from_secs(9));
    assert!(!early.iter().any(|output| matches!(output, Output::Dial(_))));
    let later = bench.at(Duration::from_secs(11));
    assert!(later.iter().any(|output| matches!(output, Output::Dial(_))), "it may be mended");
}
