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
mod tests;
