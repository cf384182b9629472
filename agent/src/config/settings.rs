//! What the layers give together, checked: the settings that the daemon runs with.

use super::{Check, CheckRule, ClaimRule, CommandLine, ModeRule, Options};
use agent_core::checks::ChecksConfig;
use agent_core::claims::ClaimsConfig;
use agent_core::config::{ControlConfig, MIN_IDLE_TIMEOUT, PeerConfig, PeerMode};
use agent_tunnel::WantedWorkers;
use ipnet::IpNet;
use proto::{
    claim::{Claim, MAX_CLAIMS},
    server_url::ServerUrl,
    session::Facts,
};
use std::{net::SocketAddr, time::Duration};

const LISTEN_PORT: u16 = 51_820;
/// Below it a busy machine looks dead; above it nobody would call it shared.
const LEAST_PROBE_INTERVAL: Duration = Duration::from_millis(10);
const MOST_PROBE_INTERVAL: Duration = Duration::from_secs(5);
const MAX_DEAD_AFTER: Duration = Duration::from_secs(60);
/// A claimant is dead after so many missed probes, whatever the time.
const MISSES: u32 = 5;
const LEAST_CHECK_INTERVAL: Duration = Duration::from_millis(100);
const MOST_CHECK_INTERVAL: Duration = Duration::from_secs(3600);
const LEAST_CHECK_TIMEOUT: Duration = Duration::from_millis(10);
const MOST_CHECK_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_CHECKS: usize = 16;
const MAX_CHECKS_AND_ONE: usize = MAX_CHECKS + 1;
const MAX_IN_A_ROW: u32 = 100;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// May be empty: an agent that was enrolled knows servers from its state.
    pub(crate) servers: Vec<ServerUrl>,
    pub(crate) hostname: String,
    pub(crate) listen_port: u16,
    pub(crate) workers: WantedWorkers,
    pub(crate) keepalive: Duration,
    pub(crate) peer_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// `None`: nowhere.
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) modes: Vec<ModeRule>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) masquerade: bool,
    pub(crate) sharing: ClaimsConfig,
    pub(crate) checking: Checking,
    pub(crate) hooks: HookLines,
    /// What was corrected; to be told to the user.
    pub(crate) warnings: Vec<String>,
}

/// What must work for claims to be served.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Checking {
    pub(crate) checks: Vec<Check>,
    pub(crate) config: ChecksConfig,
}

/// What is run when users come and go.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HookLines {
    pub(crate) on_serving: Option<CommandLine>,
    pub(crate) on_idle: Option<CommandLine>,
}

/// Values that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(
        "--peer-timeout ({peer_timeout:?}) must be longer than --keepalive ({keepalive:?}): a server would be dead before it \
         could answer"
    )]
    Timeout { keepalive: Duration, peer_timeout: Duration },
    #[error("--claim {0} is given with two priorities: {1} and {2}")]
    TwoPriorities(IpNet, u16, u16),
    #[error("--exclusive says how this node claims, and it claims nothing: give --claim PREFIX as well")]
    ExclusiveNothing,
    #[error(
        "--exclusive leaves one node to serve everybody, and --spread distributes clients: give one of them"
    )]
    ExclusiveSpread,
    #[error("--claim none takes back all claims, and is given beside {0}")]
    NoneAndOthers(IpNet),
    #[error(
        "--claim is given {0} times: a node claims at most {MAX_CLAIMS} prefixes; larger ones cover more"
    )]
    TooManyClaims(usize),
    #[error(
        "--probe-interval ({0:?}) must be from {LEAST_PROBE_INTERVAL:?} to {MOST_PROBE_INTERVAL:?}: more often, a busy node looks dead; more seldom, a dead one is found late"
    )]
    ProbeInterval(Duration),
    #[error(
        "--dead-after ({dead_after:?}) must be from {MISSES} times --probe-interval ({probe_interval:?}), as a node is dead only when it \
         missed {MISSES} probes, to {MAX_DEAD_AFTER:?}"
    )]
    DeadAfter { dead_after: Duration, probe_interval: Duration },
    #[error("--claim-check none takes back all checks, and is given beside {0}")]
    NoCheckAndOthers(String),
    #[error("--claim-check is given {0} times, at most {MAX_CHECKS}: one command can look at more")]
    TooManyChecks(usize),
    #[error(
        "--claim-check-interval ({0:?}) must be from {LEAST_CHECK_INTERVAL:?} to {MOST_CHECK_INTERVAL:?}: more often, checks are a load of their own; more seldom, \
         what is broken is served for long"
    )]
    CheckInterval(Duration),
    #[error("--claim-check-timeout ({0:?}) must be from {LEAST_CHECK_TIMEOUT:?} to {MOST_CHECK_TIMEOUT:?}")]
    CheckTimeout(Duration),
    #[error("--claim-check-{0} ({1}) must be from 1 to {MAX_IN_A_ROW}: so many results in a row count")]
    CheckCount(&'static str, u32),
}

impl Settings {
    /// `hostname` is the system's.
    pub(crate) fn resolve(options: Options, hostname: String) -> Result<Self, SettingsError> {
        let (control, peer) = (ControlConfig::default(), PeerConfig::default());
        let keepalive = options.keepalive.map_or(control.keepalive, |span| span.0);
        let peer_timeout = options.peer_timeout.map_or(control.peer_timeout, |span| span.0);
        if peer_timeout <= keepalive {
            return Err(SettingsError::Timeout { keepalive, peer_timeout });
        }
        let mut warnings = Vec::new();
        let asked = options.idle_timeout.map_or(peer.idle_timeout, |span| span.0);
        let idle_timeout = asked.max(MIN_IDLE_TIMEOUT);
        if idle_timeout != asked {
            warnings.push(format!(
                "--idle-timeout {asked:?} is below the least that WireGuard's sessions allow: {idle_timeout:?} is used"
            ));
        }
        let sharing = sharing(&options)?;
        let claims = claims(&options)?;
        if claims.is_empty() && options.exclusive == Some(true) {
            warnings.push(
                "--exclusive is kept and does nothing while this node claims nothing; what is claimed next is claimed exclusively unless --exclusive=false is given"
                    .to_owned(),
            );
        }
        let checking = checking(&options)?;
        let hooks = HookLines {
            on_serving: options.on_serving.and_then(|hook| hook.0),
            on_idle: options.on_idle.and_then(|hook| hook.0),
        };
        Ok(Self {
            claims,
            sharing,
            checking,
            hooks,
            masquerade: options.masquerade.unwrap_or(false),
            servers: options.servers.map(|list| list.0).unwrap_or_default(),
            hostname: options.hostname.unwrap_or(hostname),
            listen_port: options.listen_port.unwrap_or(LISTEN_PORT),
            workers: options
                .workers
                .map_or_else(WantedWorkers::of_this_machine, |workers| WantedWorkers::Exactly(workers.0)),
            keepalive,
            peer_timeout,
            idle_timeout,
            metrics_listen: options.metrics_listen.and_then(|listen| listen.0),
            modes: options.peer_mode,
            warnings,
        })
    }

    /// The core's configuration; rules for single peers are added by the daemon, which can look names up.
    pub(crate) fn core(&self, os_version: String) -> agent_core::Config {
        let facts = Facts {
            hostname: self.hostname.clone(),
            os: std::env::consts::OS.to_owned(),
            os_version,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            claims: self.claims.clone(),
        };
        let control = ControlConfig {
            keepalive: self.keepalive,
            peer_timeout: self.peer_timeout,
            ..ControlConfig::default()
        };
        agent_core::Config {
            servers: self.servers.clone(),
            facts,
            control,
            peer: self.peer(),
            claims: self.sharing.clone(),
        }
    }

    /// Without single peers.
    pub(crate) fn peer(&self) -> PeerConfig {
        let mode = self.modes.iter().rev().find(|rule| rule.peer.is_none());
        PeerConfig {
            mode: mode.map_or(PeerMode::default(), |rule| rule.mode),
            idle_timeout: self.idle_timeout,
            ..PeerConfig::default()
        }
    }
}

/// How claims of others are used.
fn sharing(options: &Options) -> Result<ClaimsConfig, SettingsError> {
    let usual = ClaimsConfig::default();
    let probe_interval = options.probe_interval.map_or(usual.probe_interval, |span| span.0);
    let dead_after = options.dead_after.map_or(usual.dead_after, |span| span.0);
    if !(LEAST_PROBE_INTERVAL..=MOST_PROBE_INTERVAL).contains(&probe_interval) {
        return Err(SettingsError::ProbeInterval(probe_interval));
    }
    if !(probe_interval * MISSES..=MAX_DEAD_AFTER).contains(&dead_after) {
        return Err(SettingsError::DeadAfter { dead_after, probe_interval });
    }
    let accept_routes = options.accept_routes.unwrap_or(false);
    Ok(ClaimsConfig { probe_interval, dead_after, accept_routes, ..usual })
}

/// When claims are served.
fn checking(options: &Options) -> Result<Checking, SettingsError> {
    let usual = ChecksConfig::default();
    let config = ChecksConfig {
        interval: options.claim_check_interval.map_or(usual.interval, |span| span.0),
        timeout: options.claim_check_timeout.map_or(usual.timeout, |span| span.0),
        rise: options.claim_check_rise.unwrap_or(usual.rise),
        fall: options.claim_check_fall.unwrap_or(usual.fall),
    };
    if !(LEAST_CHECK_INTERVAL..=MOST_CHECK_INTERVAL).contains(&config.interval) {
        return Err(SettingsError::CheckInterval(config.interval));
    }
    if !(LEAST_CHECK_TIMEOUT..=MOST_CHECK_TIMEOUT).contains(&config.timeout) {
        return Err(SettingsError::CheckTimeout(config.timeout));
    }
    for (name, count) in [("rise", config.rise), ("fall", config.fall)] {
        if !(1..=MAX_IN_A_ROW).contains(&count) {
            return Err(SettingsError::CheckCount(name, count));
        }
    }
    let rules = options.claim_check.as_deref().unwrap_or_default();
    let mut checks: Vec<Check> = Vec::new();
    for rule in rules {
        match rule {
            CheckRule::Check(check) if !checks.contains(check) => checks.push(check.clone()),
            CheckRule::Check(_) | CheckRule::None => {}
        }
    }
    match (checks.first(), checks.len()) {
        (Some(check), _) if rules.contains(&CheckRule::None) => {
            Err(SettingsError::NoCheckAndOthers(check.name()))
        }
        (_, MAX_CHECKS_AND_ONE..) => Err(SettingsError::TooManyChecks(checks.len())),
        (_, _) => Ok(Checking { checks, config }),
    }
}

/// What this node claims, sorted.
fn claims(options: &Options) -> Result<Vec<Claim>, SettingsError> {
    let (preempt, spread) = (options.preempt.unwrap_or(false), options.spread.unwrap_or(false));
    let masquerade = options.masquerade.unwrap_or(false);
    let exclusive = options.exclusive.unwrap_or(false);
    let rules = options.claim.as_deref().unwrap_or_default();
    let mut claims: Vec<Claim> = Vec::new();
    for rule in rules {
        match rule {
            ClaimRule::None => {}
            ClaimRule::Prefix { prefix, priority } => {
                let (prefix, priority) = (*prefix, *priority);
                let plain = Claim::new(prefix);
                claims.push(Claim { priority, preempt, spread, masquerade, exclusive, ..plain });
            }
        }
    }
    claims.sort_unstable();
    claims.dedup();
    if let Some(claim) = claims.first().filter(|_| rules.contains(&ClaimRule::None)) {
        return Err(SettingsError::NoneAndOthers(claim.prefix));
    }
    if let Some([one, two]) = claims.array_windows().find(|[one, two]: &&[Claim; 2]| one.prefix == two.prefix)
    {
        return Err(SettingsError::TwoPriorities(one.prefix, one.priority, two.priority));
    }
    match (exclusive, claims.is_empty(), spread) {
        // Claims that are taken back leave what was kept beside them without effect.
        (true, true, _) if rules.contains(&ClaimRule::None) => {}
        (true, true, _) => return Err(SettingsError::ExclusiveNothing),
        (true, false, true) => return Err(SettingsError::ExclusiveSpread),
        (true, false, false) | (false, _, _) => {}
    }
    match claims.len() {
        0..=MAX_CLAIMS => Ok(claims),
        more => Err(SettingsError::TooManyClaims(more)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, SettingsError> {
        Settings::resolve(toml::from_str(text).unwrap(), "here".into())
    }

    #[test]
    fn a_peer_timeout_not_longer_than_the_keepalive_is_refused() {
        for text in ["keepalive = 3", "peer-timeout = '1s'", "keepalive = 5\npeer-timeout = 4"] {
            assert!(matches!(settings(text), Err(SettingsError::Timeout { .. })), "{text}");
        }
        assert!(settings("keepalive = 3\npeer-timeout = '3001ms'").is_ok());
    }

    #[test]
    fn claims_can_be_taken_back_while_exclusive_is_kept() {
        let kept = settings("claim = 'none'\nexclusive = true").unwrap();
        assert_eq!(kept.claims, []);
        assert!(kept.warnings[0].contains("--exclusive is kept"), "{:?}", kept.warnings);
        assert!(settings("claim = 'none'\nexclusive = false").unwrap().warnings.is_empty());
        assert!(settings("claim = '10.0.0.1'\nexclusive = true").unwrap().warnings.is_empty());
    }

    #[test]
    fn claims_that_contradict_each_other_are_refused_by_name() {
        let claims =
            settings("claim = ['10.1.0.0/24@7', '10.1.0.0/24@7', '10.0.0.1']\nspread = true").unwrap().claims;
        let claims: Vec<(String, u16, bool)> =
            claims.iter().map(|claim| (claim.prefix.to_string(), claim.priority, claim.spread)).collect();
        assert_eq!(claims, [("10.0.0.1/32".to_owned(), 0, true), ("10.1.0.0/24".to_owned(), 7, true)]);
        assert!(settings("claim = 'none'").unwrap().claims.is_empty());
        for (text, reason) in [
            ("claim = ['10.1.0.0/24@7', '10.1.0.0/24']", "10.1.0.0/24 is given with two priorities: 0 and 7"),
            ("claim = ['none', '10.1.0.0/24']", "beside 10.1.0.0/24"),
            ("exclusive = true", "give --claim PREFIX as well"),
            ("claim = '10.0.0.1'\nexclusive = true\nspread = true", "give one of them"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let many: Vec<String> = (0..=255).map(|at| format!("'10.0.{at}.0/24'")).collect();
        assert_eq!(settings(&format!("claim = [{}]", many.join(","))).unwrap().claims.len(), MAX_CLAIMS);
        let more = format!("claim = [{}, '10.9.9.9']", many.join(","));
        assert_eq!(settings(&more), Err(SettingsError::TooManyClaims(257)));
    }

    #[test]
    fn checks_have_limits_that_are_told() {
        let found = settings("claim-check = ['tcp:80', 'tcp:80', 'cmd:true']\nclaim-check-fall = 1").unwrap();
        assert_eq!((found.checking.checks.len(), found.checking.config.fall), (2, 1));
        assert!(settings("claim-check = 'none'").unwrap().checking.checks.is_empty());
        let many: Vec<String> = (1..=17).map(|port| format!("'tcp:{port}'")).collect();
        for (text, reason) in [
            ("claim-check = ['none', 'tcp:80']", "beside tcp:80"),
            (&format!("claim-check = [{}]", many.join(",")), "17 times, at most 16"),
            ("claim-check-interval = '99ms'", "from 100ms to 3600s"),
            ("claim-check-timeout = 61", "from 10ms to 60s"),
            ("claim-check-rise = 0", "--claim-check-rise (0) must be from 1 to 100"),
            ("claim-check-fall = 101", "--claim-check-fall (101)"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_times_of_claims_have_limits_that_are_told() {
        let tight = settings("probe-interval = '20ms'\ndead-after = '150ms'").unwrap().sharing;
        assert_eq!(tight.dead_after, Duration::from_millis(150));
        for (text, reason) in [
            ("probe-interval = '9ms'", "from 10ms to 5s"),
            ("probe-interval = 6", "from 10ms to 5s"),
            ("dead-after = '249ms'", "5 times --probe-interval (50ms)"),
            ("dead-after = 61", "60s"),
            ("probe-interval = 1", "--dead-after (500ms)"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn an_idle_timeout_below_the_minimum_becomes_the_minimum_with_a_warning() {
        let corrected = settings("idle-timeout = 10").unwrap();
        assert_eq!(corrected.idle_timeout, MIN_IDLE_TIMEOUT);
        assert!(corrected.warnings[0].contains("idle-timeout 10s"), "{:?}", corrected.warnings);
        assert!(settings("idle-timeout = '4m'").unwrap().warnings.is_empty());
    }

    #[test]
    fn the_mode_for_all_is_apart_from_single_peers() {
        let found = settings("peer-mode = ['always=x', 'reachable']").unwrap();
        assert_eq!(found.peer().mode, PeerMode::Reachable);
        assert_eq!(settings("peer-mode = 'always=x'").unwrap().peer().mode, PeerMode::Lazy);
    }
}
