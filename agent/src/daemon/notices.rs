//! What the core wants people and waiting callers to know: the log, answers to pings, and rules for peers that a new map names.

use super::{DaemonError, driver::Driver};
use crate::{
    local::{Answer, Pong},
    platform::boot_time,
};
use agent_core::{Notice, control::Served};
use ipnet::IpNet;
use proto::key::PublicKey;
use std::{net::SocketAddr, time::Duration};

impl Driver<'_> {
    pub(super) fn on_notice(&mut self, notice: Notice) -> Result<(), DaemonError> {
        match notice {
            Notice::Served(served) => log_served(&served),
            Notice::Unserved => tracing::info!("no server serves us; tunnels stay as they are"),
            Notice::MapChanged { revision } => {
                tracing::debug!(revision, "the map changed");
                self.apply_modes();
            }
            Notice::Refused(refused) => {
                tracing::warn!(reason = ?refused.reason, detail = %refused.detail, "servers refuse this node");
                if self.refusal_ends_us(&refused) {
                    return Err(DaemonError::Refused(refused));
                }
            }
            Notice::Enrolled => tracing::info!("enrolled: this node is a member of the network"),
            Notice::Peer { key, up } => {
                let peer = self.name_of(&key);
                match up {
                    true => tracing::info!(peer, "peer connected"),
                    false => tracing::info!(peer, "peer disconnected"),
                }
            }
            Notice::Claim { prefix, active, before } => self.on_claim(prefix, active, before),
            Notice::Users { prefix, users } => {
                tracing::debug!(%prefix, users, "peers use what this node serves");
                self.users_logged.set_users(prefix, users);
                self.world.hooking.set_users(prefix, users);
            }
            Notice::Held { prefix, fence } => {
                match fence {
                    Some(fence) => tracing::info!(%prefix, fence, "this node holds it exclusively"),
                    None => tracing::info!(%prefix, "this node holds it no more: it does not serve it"),
                }
                self.world.hooking.set_held(prefix, fence);
            }
            Notice::Reset { prefix, from, to, connections } => {
                let (from, to) = (self.name_of(&from), to.map(|key| self.name_of(&key)));
                tracing::info!(%prefix, from, to, connections, "connections that cannot go on were reset");
            }
            Notice::Pong { id, rtt, endpoint } => self.on_pong(id, rtt, endpoint),
        }
        Ok(())
    }

    pub(super) fn log_users(&mut self) {
        let now = boot_time();
        while let Some((prefix, users)) = self.users_logged.poll(now) {
            tracing::info!(%prefix, users, "peers use what this node serves");
        }
    }

    fn on_claim(&self, prefix: IpNet, active: Option<PublicKey>, before: Option<PublicKey>) {
        let name = |key: Option<PublicKey>| key.map(|key| self.name_of(&key));
        match (name(active), name(before)) {
            (Some(active), Some(before)) => {
                tracing::info!(%prefix, active, before, "another node serves a shared prefix")
            }
            (Some(active), None) => tracing::info!(%prefix, active, "a shared prefix is served"),
            (None, _) => tracing::info!(%prefix, "nobody claims a shared prefix any more"),
        }
    }

    fn on_pong(&mut self, id: u64, rtt: Duration, endpoint: Option<SocketAddr>) {
        if let Some((peer, answer)) = self.pings.remove(&id) {
            // A caller who did not wait is not told.
            let _ = answer.send(Answer::Pong(Pong { peer, rtt_ms: rtt.as_secs_f64() * 1000.0, endpoint }));
        }
    }

    /// A peer's name, else the start of its key.
    pub(super) fn name_of(&self, key: &PublicKey) -> String {
        self.agent.name_of(key).map_or_else(|| key.short(), str::to_owned)
    }

    /// Gives the core the rules for single peers, as far as the map knows them by now.
    pub(super) fn apply_modes(&mut self) {
        let mut config = self.settings.peer();
        for rule in &self.settings.modes {
            if let Some(key) = rule.peer.as_ref().and_then(|peer| self.agent.find_peer(peer)) {
                config.modes.insert(key, rule.mode);
            }
        }
        if config != self.peer_config {
            self.peer_config = config.clone();
            self.agent.set_peer_config(config, boot_time());
        }
    }
}

fn log_served(served: &Served) {
    let (url, server) = (&served.url, &served.server);
    match served.after {
        None => tracing::info!(%url, ?server, "served"),
        Some(after) => tracing::info!(%url, ?server, ?after, "served again"),
    }
}
