//! A peer's tunnel life.
//!
//! ```text
//!          packet waiting, signal,                    handshake done
//!          greeting, kept mode                        (by either side)
//!   Idle ---------------------------> Waking -------------------------> Connected
//!    ^                                  |   ^                             |    |
//!    |   gave up (not in a kept mode)   |   |   session lost (kept mode)  |    |
//!    +----------------------------------+   +-----------------------------+    |
//!    |                                                                         |
//!    +-------------------------------------------------------------------------+
//!                 no data for the idle timeout, session lost (lazy)
//! ```
//!
//! While `Waking`, and while a connected path is in doubt, a fresh initiation goes to every candidate endpoint, faster than WireGuard's own 5 s at first. The data plane keeps
//! the waiting packets. An idle peer has no deadline. No control server has a part in this; they only carry signals, where they can.

use crate::{
    config::{PeerConfig, PeerMode},
    path::Paths,
    time::{BootTime, Cause, Deadline, earliest},
};
use rand::RngExt;
use rand_pcg::Pcg32;
use std::{net::SocketAddr, time::Duration};

/// Why a tunnel is wanted: decides how long it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// A packet waits.
    Data,
    /// We restarted and had a tunnel, or the peer asked.
    Greeting,
    /// The mode keeps it up.
    Kept,
}

/// Repeated initiations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempts {
    want: Want,
    since: BootTime,
    count: u32,
    retry_at: BootTime,
    /// The peer was asked, through servers, to open its side.
    is_signalled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waking(Attempts),
    Connected {
        data_at: BootTime,
        /// When the newest session was made, by either side.
        session_at: BootTime,
        /// When the session is renewed if the data plane did not; `None` until data flows again.
        renew_at: Option<BootTime>,
        /// The path is in doubt.
        repair: Option<Attempts>,
    },
}

/// What is to be done for this peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Initiate,
    /// Ask the peer, through servers, to open its side.
    Signal,
    Forget,
    SetKeepalive(Option<Duration>),
    /// Begin a round of path probes.
    Probe,
    SetEndpoint(SocketAddr),
    /// The tunnel came up or went down.
    Up(bool),
}

/// The machine of one peer.
#[derive(Debug, Clone)]
pub struct Peer {
    pub paths: Paths,
    mode: PeerMode,
    /// Member, not expired, not removed: may be dialled.
    usable: bool,
    state: State,
    /// No initiation because of an unknown receiver index before this.
    next_greeting_at: BootTime,
}

/// Between two initiations that unknown receiver indices or signals bring: 1/s per peer.
const GREETING_INTERVAL: Duration = Duration::from_secs(1);
/// WireGuard's REJECT_AFTER_TIME (whitepaper, section 6.1).
const SESSION_LIFE: Duration = Duration::from_secs(180);
/// WireGuard renews sessions that carry data, after 120 s. One that carries none is renewed by us until the idle timeout, since it would end at 180 s; and so is one of which each side
/// takes itself for the responder, because both began at once.
const RENEW_AFTER: Duration = Duration::from_secs(150);
/// Added to that, by the clock of each side, so that both do not begin at once again.
const RENEW_SPREAD_MS: u32 = 5000;
/// An unanswered renewal is repeated.
const RENEW_RETRY: Duration = Duration::from_secs(5);

impl Peer {
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            mode: PeerMode::Lazy,
            usable: false,
            state: State::Idle,
            next_greeting_at: BootTime::default(),
        }
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected { .. })
    }

    pub fn is_waking(&self) -> bool {
        matches!(self.state, State::Waking(_))
    }

    pub fn is_usable(&self) -> bool {
        self.usable
    }

    pub fn mode(&self) -> PeerMode {
        self.mode
    }

    /// A peer whose login or certificate ended is not dialled, and its tunnel goes.
    pub fn set_usable(&mut self, usable: bool, config: &PeerConfig, now: BootTime) -> Vec<Action> {
        if self.usable == usable {
            return Vec::new();
        }
        self.usable = usable;
        match usable {
            true if self.is_kept() => {
                // The data plane had dropped the peer, and its keepalive with it.
                let mut actions = vec![Action::SetKeepalive(Some(config.keepalive))];
                actions.extend(self.wake(Want::Kept, now));
                actions
            }
            true => Vec::new(),
            false => self.forget(),
        }
    }

    /// Kept up: connects at once. Back to lazy: the tunnel stays and its idle timer starts.
    pub fn set_mode(&mut self, mode: PeerMode, config: &PeerConfig, now: BootTime) -> Vec<Action> {
        if self.mode == mode {
            return Vec::new();
        }
        self.mode = mode;
        let keepalive = self.is_kept().then_some(config.keepalive);
        let mut actions = vec![Action::SetKeepalive(keepalive)];
        match (&mut self.state, mode) {
            (State::Idle, PeerMode::Always | PeerMode::Reachable) => {
                actions.extend(self.wake(Want::Kept, now))
            }
            (State::Waking(attempts), PeerMode::Always | PeerMode::Reachable) => attempts.want = Want::Kept,
            (State::Waking(attempts), PeerMode::Lazy) => {
                *attempts = Attempts { want: Want::Greeting, since: now, ..*attempts };
            }
            (State::Connected { data_at, .. }, PeerMode::Lazy) => *data_at = now,
            (State::Idle, PeerMode::Lazy)
            | (State::Connected { .. }, PeerMode::Always | PeerMode::Reachable) => {}
        }
        actions
    }

    /// A packet waits in the data plane.
    pub fn on_packet_waiting(&mut self, now: BootTime) -> Vec<Action> {
        match &mut self.state {
            // Packets are waited for longer than greetings are tried.
            State::Waking(attempts) if attempts.want == Want::Greeting => {
                attempts.want = Want::Data;
                Vec::new()
            }
            State::Waking(_) => Vec::new(),
            State::Idle | State::Connected { .. } => self.wake(Want::Data, now),
        }
    }

    /// After a restart, to a peer that had a tunnel.
    pub fn greet(&mut self, now: BootTime) -> Vec<Action> {
        match self.state {
            State::Idle => self.wake(Want::Greeting, now),
            State::Waking(_) | State::Connected { .. } => Vec::new(),
        }
    }

    /// The peer asks us to open our side.
    pub fn on_signal(&mut self, endpoints: &[SocketAddr], now: BootTime) -> Vec<Action> {
        if !self.usable {
            return Vec::new();
        }
        self.paths.on_signal(endpoints, now);
        self.answer(now)
    }

    /// It uses a session that we lost: we or it restarted.
    pub fn on_unknown_index(&mut self, now: BootTime) -> Vec<Action> {
        self.answer(now)
    }

    /// Its handshakes do not count here, ours do there.
    pub fn on_stale_initiation(&mut self, from: SocketAddr, now: BootTime) -> Vec<Action> {
        if self.usable {
            self.paths.on_stale_initiation(from, now);
        }
        self.answer(now)
    }

    fn answer(&mut self, now: BootTime) -> Vec<Action> {
        if !self.usable || now < self.next_greeting_at {
            return Vec::new();
        }
        self.next_greeting_at = now + GREETING_INTERVAL;
        match self.state {
            State::Idle => {
                let mut actions = self.wake(Want::Greeting, now);
                // It just asked; it need not be asked back.
                actions.retain(|action| *action != Action::Signal);
                actions
            }
            State::Waking(_) | State::Connected { .. } => vec![Action::Initiate],
        }
    }

    pub fn on_handshake(&mut self, endpoint: SocketAddr, now: BootTime) -> Vec<Action> {
        self.paths.on_works(endpoint);
        let was_connected = self.is_connected();
        let data_at = match self.state {
            State::Connected { data_at, .. } => data_at,
            State::Idle | State::Waking(_) => now,
        };
        let spread = now.since_boot().subsec_micros() % RENEW_SPREAD_MS;
        let renew_at = Some(now + RENEW_AFTER + Duration::from_millis(spread.into()));
        self.state = State::Connected { data_at, session_at: now, renew_at, repair: None };
        match was_connected {
            true => Vec::new(),
            false => vec![Action::Up(true), Action::Probe],
        }
    }

    pub fn on_endpoint_changed(&mut self, endpoint: SocketAddr) {
        if self.is_connected() {
            self.paths.on_works(endpoint);
        }
    }

    pub fn on_active(&mut self, now: BootTime) {
        if let State::Connected { data_at, renew_at, session_at, .. } = &mut self.state {
            *data_at = now;
            renew_at.get_or_insert(now.max(*session_at + RENEW_AFTER));
        }
    }

    /// Data was sent and nothing came back: the path may be dead.
    pub fn on_unanswered(&mut self, now: BootTime) -> Vec<Action> {
        let want = if self.is_kept() { Want::Kept } else { Want::Data };
        match &mut self.state {
            State::Connected { repair: repair @ None, .. } => {
                *repair = Some(Attempts { want, since: now, count: 0, retry_at: now, is_signalled: true });
                vec![Action::Signal]
            }
            State::Connected { .. } | State::Idle | State::Waking(_) => Vec::new(),
        }
    }

    /// The same of one whose agent is asked now: it has so long to show that it is there. Data may be of a kind that nobody answers.
    pub fn on_silent(&mut self, patience: Duration, now: BootTime) {
        let want = if self.is_kept() { Want::Kept } else { Want::Data };
        if let State::Connected { repair: repair @ None, .. } = &mut self.state {
            let retry_at = now + patience;
            *repair = Some(Attempts { want, since: now, count: 0, retry_at, is_signalled: false });
        }
    }

    /// Something came from one that was silent.
    pub fn on_heard(&mut self) {
        if let State::Connected { repair, .. } = &mut self.state {
            *repair = repair.filter(|repair| repair.count > 0 || repair.is_signalled);
        }
    }

    pub fn on_session_lost(&mut self, now: BootTime) -> Vec<Action> {
        if !self.is_connected() {
            return Vec::new();
        }
        // Nothing is to be forgotten in the data plane: a packet may wait there already, for the next session.
        self.state = State::Idle;
        self.paths.on_down();
        let mut actions = vec![Action::Up(false)];
        if self.is_kept() {
            actions.extend(self.wake(Want::Kept, now));
        }
        actions
    }

    /// Our own addresses changed: every live tunnel shows itself under the new one.
    pub fn on_network_changed(&self) -> Vec<Action> {
        match self.state {
            State::Connected { .. } | State::Waking(_) => vec![Action::Initiate],
            State::Idle => Vec::new(),
        }
    }

    pub fn handle_timeout(&mut self, config: &PeerConfig, rng: &mut Pcg32, now: BootTime) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(endpoint) = self.paths.poll_promotion(now) {
            actions.push(Action::SetEndpoint(endpoint));
        }
        let is_kept = self.is_kept();
        match &mut self.state {
            State::Idle => {}
            State::Waking(attempts) | State::Connected { repair: Some(attempts), .. } => {
                if now < attempts.retry_at {
                    return actions;
                }
                match attempts.next(config, rng, now) {
                    Some(mut step) => actions.append(&mut step),
                    None => actions.extend(self.forget()),
                }
            }
            State::Connected { data_at, session_at, renew_at, repair: None } => {
                if !is_kept && now >= idle_at(*data_at, *session_at, config) {
                    actions.extend(self.forget());
                } else if renew_at.take_if(|at| now >= *at).is_some()
                    && (is_kept || now < *data_at + config.idle_timeout)
                {
                    *renew_at = Some(now + RENEW_RETRY.mul_f64(rng.random_range(1.0..=1.5)));
                    actions.push(Action::Initiate);
                }
            }
        }
        actions
    }

    pub fn deadline(&self, config: &PeerConfig) -> Option<Deadline> {
        let own = match self.state {
            State::Idle => None,
            State::Waking(attempts) | State::Connected { repair: Some(attempts), .. } => {
                Some(Deadline { at: attempts.retry_at, cause: Cause::Handshake })
            }
            State::Connected { data_at, session_at, renew_at, repair: None } => {
                let idle = Deadline { at: idle_at(data_at, session_at, config), cause: Cause::Idle };
                let renew = renew_at.map(|at| Deadline { at, cause: Cause::Handshake });
                earliest([(!self.is_kept()).then_some(idle), renew])
            }
        };
        earliest([own, self.paths.deadline()])
    }

    fn is_kept(&self) -> bool {
        match self.mode {
            PeerMode::Lazy => false,
            PeerMode::Always | PeerMode::Reachable => true,
        }
    }

    fn wake(&mut self, want: Want, now: BootTime) -> Vec<Action> {
        if !self.usable {
            return vec![Action::Forget];
        }
        let mut actions = Vec::new();
        if self.is_connected() {
            // The data plane has no session for what we took for connected.
            self.paths.on_down();
            actions.push(Action::Up(false));
        }
        let want = if self.is_kept() { Want::Kept } else { want };
        let attempts = Attempts { want, since: now, count: 0, retry_at: now, is_signalled: true };
        self.state = State::Waking(attempts);
        actions.push(Action::Signal);
        actions
    }

    fn forget(&mut self) -> Vec<Action> {
        let was_connected = self.is_connected();
        self.state = State::Idle;
        self.paths.on_down();
        match was_connected {
            true => vec![Action::Forget, Action::Up(false)],
            false => vec![Action::Forget],
        }
    }
}

/// When a lazy tunnel is forgotten: never while the other side may use a session that it renewed.
fn idle_at(data_at: BootTime, session_at: BootTime, config: &PeerConfig) -> BootTime {
    (data_at + config.idle_timeout).max(session_at + SESSION_LIFE)
}

impl Attempts {
    /// The next initiation, or `None` to give up.
    fn next(&mut self, config: &PeerConfig, rng: &mut Pcg32, now: BootTime) -> Option<Vec<Action>> {
        let (patience, cap) = match self.want {
            Want::Data => (Some(config.handshake_attempt_time), config.handshake_retry_cap),
            Want::Greeting => (Some(config.greeting_time), config.handshake_retry_cap),
            Want::Kept if now.since(self.since) < config.handshake_attempt_time => {
                (None, config.handshake_retry_cap)
            }
            Want::Kept => (None, config.kept_retry_cap),
        };
        if patience.is_some_and(|patience| now.since(self.since) >= patience) {
            return None;
        }
        let delay = cap.min(config.handshake_retry * 2u32.saturating_pow(self.count.min(16)));
        self.retry_at =
            now + delay + config.handshake_jitter.min(delay / 2).mul_f64(rng.random_range(0.0..=1.0));
        self.count = self.count.saturating_add(1);
        // The first signal mostly went out with the wake; a lost one is repeated now and then.
        let is_signalled = std::mem::replace(&mut self.is_signalled, true);
        match is_signalled && !self.count.is_multiple_of(4) {
            false => Some(vec![Action::Initiate, Action::Signal]),
            true => Some(vec![Action::Initiate]),
        }
    }
}

#[cfg(test)]
mod tests {
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
        World {
            peer,
            config: PeerConfig::default(),
            rng: Pcg32::seed_from_u64(1),
            now: START,
            answers: false,
        }
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
        assert_eq!(
            world.peer.set_mode(PeerMode::Lazy, &world.config, world.now),
            [Action::SetKeepalive(None)]
        );
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
}
