//! Shared addresses: what the machine of claims decides is done to tunnels, and what tunnels tell is told to it.

use super::Agent;
use crate::{
    claims::{Output, Told},
    config::PeerMode,
    io::{self, Notice, TunnelCommand},
};
use ipnet::IpNet;
use proto::{key::PublicKey, peer_message::ProbeReply};

impl Agent {
    /// Does what the machine of claims asks for.
    pub(super) fn drain_claims(&mut self) {
        while let Some(output) = self.claims.poll_output() {
            match output {
                Output::Route { prefix, peer, from, broken } => {
                    self.move_prefix(prefix, peer, from);
                    if let Some(from) = broken {
                        self.tunnel(TunnelCommand::Reset { prefix, from });
                    }
                }
                Output::Withhold { prefix, withheld } => {
                    self.tunnel(TunnelCommand::Withhold { prefix, withheld });
                }
                Output::Probe { peer, id } => {
                    let probe = self.probe(&peer, id);
                    self.send_to_peer(peer, probe, None);
                }
                Output::Keep { peer, kept } => self.keep(peer, kept),
                Output::Watch { peer, silence } => self.tunnel(TunnelCommand::Watch { peer, silence }),
            }
        }
    }

    /// What a member claims, according to the map; nothing while it is not usable.
    pub(super) fn hear_claims(&mut self, key: &PublicKey, usable: bool) {
        let Some(member) = self.netmap.member(key) else { return };
        let claims = if usable { member.granted_claims() } else { Vec::new() };
        let node = member.membership.node_id;
        self.claims.handle_claims(*key, node, claims, self.now);
    }

    /// First the new one: what it is given, the former has no more.
    fn move_prefix(&mut self, prefix: IpNet, to: Option<PublicKey>, from: Option<PublicKey>) {
        let (former, new) = (from.filter(|key| self.is_used(key)), to.filter(|key| self.is_used(key)));
        for key in [new, former].into_iter().flatten() {
            self.upsert(&key);
        }
        for key in [former, new].into_iter().flatten() {
            self.tell_use(key);
        }
        self.outputs.push_back(io::Output::Notice(Notice::Claim { prefix, active: to, before: from }));
        self.configure_interface();
    }

    fn is_used(&self, key: &PublicKey) -> bool {
        self.peers.get(key).is_some_and(|peer| peer.is_usable())
    }

    /// Gives the data plane a peer with all that goes to it.
    pub(super) fn upsert(&mut self, key: &PublicKey) {
        let Some(member) = self.netmap.member(key) else { return };
        let own = member.membership.addresses.iter().map(|ip| IpNet::from(*ip));
        let allowed_ips = own.chain(self.claims.served_by(key)).collect();
        let sources = self.sources_of(key);
        self.tunnel(TunnelCommand::Upsert { peer: *key, allowed_ips, sources });
    }

    /// What a peer may send from: its own addresses, and the claims that it was granted.
    pub(super) fn sources_of(&self, key: &PublicKey) -> Vec<IpNet> {
        let Some(member) = self.netmap.member(key) else { return Vec::new() };
        let own = member.membership.addresses.iter().map(|ip| IpNet::from(*ip));
        own.chain(member.granted_claims().iter().map(|claim| claim.prefix)).collect()
    }

    /// A tunnel that a prefix in use may need is kept up.
    fn keep(&mut self, key: PublicKey, kept: bool) {
        match kept {
            true => self.kept_for_claims.insert(key),
            false => self.kept_for_claims.remove(&key),
        };
        let (mode, config) = (self.mode_of(&key), self.config.peer.clone());
        self.with_peer(&key, |peer, now| peer.set_mode(mode, &config, now));
    }

    pub(super) fn mode_of(&self, key: &PublicKey) -> PeerMode {
        match self.peer_config().mode_of(key) {
            PeerMode::Lazy if self.kept_for_claims.contains(key) => PeerMode::Reachable,
            mode @ (PeerMode::Lazy | PeerMode::Always | PeerMode::Reachable) => mode,
        }
    }

    /// An agent answered a probe, whoever of us asked.
    pub(super) fn on_claimant_told(&mut self, key: &PublicKey, boot: u64, reply: ProbeReply) {
        let withdraws = reply.withdraws();
        let ProbeReply { id, uptime, is_leaving, is_withdrawn, apart, claims } = reply;
        let told = Told { boot, uptime, is_leaving, is_withdrawn, apart, claims };
        self.claims.handle_reply(key, id, told, self.now);
        // It said so of its own accord, perhaps again, as it did not hear that we moved.
        if id == 0 && withdraws {
            self.drain_claims();
            self.tell_use(*key);
        }
    }
}
