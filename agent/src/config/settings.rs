//! What the layers give together, checked: the settings that the daemon runs with.

use super::{ModeRule, Options};
use agent_core::claims::ClaimsConfig;
use agent_core::config::{ControlConfig, MIN_IDLE_TIMEOUT, PeerConfig, PeerMode};
use agent_tunnel::WantedWorkers;
use proto::{server_url::ServerUrl, session::Facts};
use std::{net::SocketAddr, time::Duration};

const LISTEN_PORT: u16 = 51_820;

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
    /// What was corrected; to be told to the user.
    pub(crate) warnings: Vec<String>,
}

/// Values that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(
        "--peer-timeout ({peer_timeout:?}) must be longer than --keepalive ({keepalive:?}): a server would be dead before it \
         could answer"
    )]
    Timeout { keepalive: Duration, peer_timeout: Duration },
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
        Ok(Self {
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
            claims: Vec::new(),
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
            claims: ClaimsConfig::default(),
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
