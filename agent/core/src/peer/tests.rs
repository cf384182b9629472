use super::*;
use rand::SeedableRng;

const START: BootTime = BootTime::from_duration(Duration::from_secs(100));

struct World {
    peer: Peer,
    config: PeerConfig,
    rng: Pcg32,
    now: BootTime,
    /// Whether the peer answers initiations.
    answers: bool,
}

fn world() -> World {
    let mut peer = Peer::new(Paths::default());
    assert!(peer.set_usable(true, &PeerConfig::default(), START).is_empty());
    World { peer, config: PeerConfig::default(), rng: Pcg32::seed_from_u64(1), now: START, answers: false }
}

impl World {
    /// Goes from deadline to deadline for `span`, counting initiations; panics where a deadline does not move on.
    fn run(&mut self, span: Duration) -> (usize, Vec<Action>) {
        let end = self.now + span;
        let mut actions = Vec::new();
        let mut stuck = 0;
        while let Some(deadline) = self.peer.deadline(&self.config).filter(|d| d.at <= end) {
            stuck = if deadline.at > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 3, "spins at {deadline:?}");
            self.now = self.now.max(deadline.at);
            let done = self.peer.handle_timeout(&self.config, &mut self.rng, self.now);
            if self.answers && done.contains(&Action::Initiate) {
                self.connect();
            }
            actions.extend(done);
        }
        self.now = end;
        (actions.iter().filter(|action| **action == Action::Initiate).count(), actions)
    }

    fn connect(&mut self) {
        self.peer.on_handshake(endpoint(), self.now);
    }
}

fn endpoint() -> SocketAddr {
    "192.0.2.1:51820".parse().unwrap()
}

#[test]
fn a_waiting_packet_wakes_at_once_and_is_given_up_after_ninety_seconds() {
    let mut world = world();
    assert_eq!(world.peer.on_packet_waiting(START), [Action::Signal]);
    assert_eq!(world.peer.deadline(&world.config).map(|d| d.at), Some(START));
    let (initiations, _) = world.run(Duration::from_secs(3));
    assert!((3..=5).contains(&initiations), "{initiations}");
    let (_, actions) = world.run(Duration::from_secs(100));
    assert_eq!(actions.last(), Some(&Action::Forget));
    assert_eq!(world.peer.deadline(&world.config), None, "an idle peer has no timer");
}

/// The tunnel stays for the idle timeout, then nothing is sent any more, and it goes with its last session.
fn goes_idle(world: &mut World) {
    let (renewals, actions) = world.run(Duration::from_secs(299));
    assert!(world.peer.is_connected() && actions.len() == renewals && renewals <= 2, "{actions:?}");
    let (_, actions) = world.run(Duration::from_secs(181));
    assert_eq!(actions, [Action::Forget, Action::Up(false)]);
}

#[test]
fn a_lazy_tunnel_is_forgotten_after_its_idle_timeout_and_not_before() {
    let mut world = world();
    world.answers = true;
    world.connect();
    world.run(Duration::from_secs(100));
    world.peer.on_active(world.now);
    goes_idle(&mut world);
}

#[test]
fn a_long_idle_timeout_keeps_the_session_renewed() {
    let mut world = world();
    world.answers = true;
    world.config.idle_timeout = Duration::from_secs(3600);
    world.connect();
    let (renewals, _) = world.run(Duration::from_secs(3599));
    assert!(world.peer.is_connected() && (22..=24).contains(&renewals), "{renewals}");
}

#[test]
fn a_kept_peer_connects_without_traffic_and_is_never_given_up() {
    let mut world = world();
    let actions = world.peer.set_mode(PeerMode::Always, &world.config, START);
    assert_eq!(actions, [Action::SetKeepalive(Some(Duration::from_secs(25))), Action::Signal]);
    world.run(Duration::from_secs(3600));
    let (initiations, _) = world.run(Duration::from_secs(3600));
    assert!((100..=130).contains(&initiations), "one in 30 s: {initiations}");
}

#[test]
fn back_to_lazy_keeps_the_tunnel_and_starts_the_idle_timer() {
    let mut world = world();
    world.answers = true;
    world.peer.set_mode(PeerMode::Always, &world.config, START);
    world.connect();
    world.run(Duration::from_secs(1000));
    assert!(world.peer.is_connected());
    assert_eq!(world.peer.set_mode(PeerMode::Lazy, &world.config, world.now), [Action::SetKeepalive(None)]);
    goes_idle(&mut world);
}

#[test]
fn a_lazy_side_keeps_the_session_that_a_kept_side_renews() {
    let mut world = world();
    for _ in 0..20 {
        world.connect();
        world.run(Duration::from_secs(120));
        assert!(world.peer.is_connected());
    }
    world.run(Duration::from_secs(60));
    assert!(!world.peer.is_connected(), "the other side went");
}

#[test]
fn an_expired_peer_is_never_dialled() {
    let mut world = world();
    world.connect();
    let actions = world.peer.set_usable(false, &world.config, START);
    assert_eq!(actions, [Action::Forget, Action::Up(false)]);
    let mut actions = world.peer.on_packet_waiting(START);
    actions.extend(world.peer.set_mode(PeerMode::Always, &world.config, START));
    actions.extend(world.peer.on_signal(&[endpoint()], START));
    actions.extend(world.peer.greet(START));
    actions.extend(world.run(Duration::from_secs(100)).1);
    assert!(!actions.iter().any(|a| matches!(a, Action::Initiate | Action::Signal)), "{actions:?}");
}

#[test]
fn a_doubtful_path_is_repaired_without_losing_the_session() {
    let mut world = world();
    world.connect();
    world.peer.on_unanswered(START);
    let (initiations, actions) = world.run(Duration::from_secs(2));
    assert!(initiations >= 2);
    assert!(!actions.contains(&Action::Forget));
    world.connect();
    assert_eq!(world.run(Duration::from_secs(10)).0, 0);
}

#[test]
fn a_silent_peer_that_shows_itself_in_time_is_not_sent_a_handshake_and_another_is_with_a_signal() {
    let (mut world, patience) = (world(), Duration::from_millis(100));
    world.connect();
    for _ in 0..100 {
        world.peer.on_silent(patience, world.now);
        assert_eq!(world.run(Duration::from_millis(99)).1, []);
        world.peer.on_heard();
        assert_eq!(world.run(Duration::from_millis(50)).1, []);
    }
    world.peer.on_silent(patience, world.now);
    assert_eq!(world.run(patience).1, [Action::Initiate, Action::Signal]);
    // What came by the session that is in doubt ends no repair that has begun.
    world.peer.on_heard();
    assert!(world.run(Duration::from_secs(2)).0 >= 1);
}

#[test]
fn a_renewal_that_nobody_answers_is_repeated() {
    let mut world = world();
    world.connect();
    world.run(Duration::from_secs(140));
    world.peer.on_active(world.now);
    assert_eq!(world.run(Duration::from_secs(9)).0, 0);
    assert!(world.run(Duration::from_secs(20)).0 >= 2);
}

#[test]
fn a_lost_session_leaves_what_waits_in_the_data_plane_alone() {
    let mut world = world();
    world.connect();
    assert_eq!(world.peer.on_session_lost(START), [Action::Up(false)]);
    assert_eq!(world.peer.on_packet_waiting(START), [Action::Signal]);
}

#[test]
fn a_kept_peer_that_may_be_dialled_again_gets_its_keepalive_again() {
    let mut world = world();
    world.peer.set_mode(PeerMode::Reachable, &world.config, START);
    world.peer.set_usable(false, &world.config, START);
    let actions = world.peer.set_usable(true, &world.config, START);
    assert_eq!(actions, [Action::SetKeepalive(Some(world.config.keepalive)), Action::Signal]);
}

#[test]
fn unknown_indices_bring_one_initiation_a_second() {
    let mut world = world();
    world.connect();
    assert_eq!(world.peer.on_unknown_index(START), [Action::Initiate]);
    assert!(world.peer.on_unknown_index(START + Duration::from_millis(999)).is_empty());
    assert_eq!(world.peer.on_unknown_index(START + Duration::from_secs(1)), [Action::Initiate]);
}
