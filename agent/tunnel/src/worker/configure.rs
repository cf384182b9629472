//! WireGuard's configuration protocol: peers are changed in place, and what is not named stays.

use std::sync::atomic::Ordering;

use super::{Local, Worker};
use crate::{
    ConfigureError, Peer, PresharedKey, PrivateKey, StartError, allowed,
    noise::Noise,
    peer::{PeerId, PeerState},
    socket::Sockets,
    uapi::{Changes, Description, PeerChanges},
};

impl Worker {
    /// All of it, or nothing: what can fail comes first.
    pub(super) fn configure(&mut self, changes: Changes) -> Result<(), ConfigureError> {
        self.set_sockets(changes.listen_port, changes.fwmark)?;
        if let Some(key) = changes.private_key {
            self.set_private_key(key);
        }
        if changes.replace_peers {
            self.peers.ids().into_iter().for_each(|id| self.remove(id));
        }
        let mut lists = allowed::Edit::default();
        changes.peers.into_iter().for_each(|peer| self.change_peer(peer, &mut lists));
        lists.finish(&mut self.peers, &self.routes);
        Ok(())
    }

    pub(super) fn describe(&self) -> Description {
        Description {
            private_key: self.local.as_ref().map(|local| local.key.clone()),
            listen_port: self.outbox.sockets.port(),
            fwmark: self.fwmark,
            drops: self.counters().drops,
            peers: self.peers.iter().map(PeerState::describe).collect(),
        }
    }

    fn set_sockets(&mut self, port: Option<u16>, mark: Option<Option<u32>>) -> Result<(), ConfigureError> {
        self.outbox.flush();
        let (sockets, team) = (&mut self.outbox.sockets, self.team.as_deref());
        let (port, mark) = (port.unwrap_or(self.wanted_port), mark.unwrap_or(self.fwmark));
        // The port may be the one that was chosen for "any".
        let stays = port == self.wanted_port || port == sockets.port();
        let done = match (stays, mark != self.fwmark, team) {
            (false, _, None) => sockets.rebind(port, mark),
            (false, _, Some(team)) => {
                match team.renew_sockets(|workers| Sockets::rebind_group(port, mark, workers)) {
                    Ok(Some(renewed)) => {
                        *sockets = renewed;
                        Ok(())
                    }
                    // The first worker has told why.
                    Ok(None) => return Err(ConfigureError::Stopped),
                    Err(error) => Err(error),
                }
            }
            (true, true, _) => sockets.set_mark(mark),
            (true, false, _) => Ok(()),
        };
        done.map_err(|error| match error {
            StartError::Mark(source) => ConfigureError::Mark(source),
            StartError::Socket(source) | StartError::Thread(source) => ConfigureError::Port { port, source },
        })?;
        (self.wanted_port, self.fwmark) = (port, mark);
        self.listen_port.store(self.outbox.sockets.port(), Ordering::Relaxed);
        Ok(())
    }

    /// Every session ends: it was another node's.
    fn set_private_key(&mut self, key: Option<PrivateKey>) {
        let bytes = |key: &PrivateKey| key.0.to_bytes();
        if self.local.as_ref().map(|local| bytes(&local.key)) == key.as_ref().map(bytes) {
            return;
        }
        for id in self.peers.live().to_vec() {
            self.peers.end(id);
            self.answers.remove(id);
        }
        let own = key.as_ref().map(PrivateKey::public_key);
        self.local = key.map(Local::new);
        self.share_cookies();
        if let Some(id) = own.and_then(|own| self.peers.find(&own)) {
            self.remove(id);
        }
        self.revive_all();
    }

    fn change_peer(&mut self, changes: PeerChanges, lists: &mut allowed::Edit) {
        let own = self.local.as_ref().map(|local| local.key.public_key());
        let id = match self.peers.find(&changes.key) {
            Some(id) if changes.remove => {
                lists.give_back(&mut self.peers, id);
                return self.remove(id);
            }
            Some(id) => id,
            None if changes.remove || changes.update_only || own == Some(changes.key) => return,
            None => self.peers.insert(PeerState::new(Peer {
                key: changes.key,
                allowed_ips: Vec::new(),
                sources: Vec::new(),
                preshared_key: None,
            })),
        };
        lists.change(&mut self.peers, &mut self.routes, id, &changes.allowed_ips);
        if !self.peers.owns(id) {
            return;
        }
        if let Some(key) = changes.preshared_key {
            self.set_preshared_key(id, key);
        }
        let Some(state) = self.peers.get(id) else { return };
        if let Some(endpoint) = changes.endpoint {
            state.path = Some(state.path_to(super::commands::canonical(endpoint)));
        }
        if let Some(interval) = changes.keepalive {
            state.keepalive = interval;
        }
        if state.keepalive.is_some() && (changes.endpoint.is_some() || changes.keepalive.is_some()) {
            self.revivals.insert((self.now, id));
        }
    }

    /// A session lasts on; the key counts from the next handshake.
    fn set_preshared_key(&mut self, id: PeerId, key: Option<PresharedKey>) {
        let Some(state) = self.peers.get(id) else { return };
        if state.preshared_key.as_deref() == key.as_ref() {
            return;
        }
        state.preshared_key = key.map(Box::new);
        let Some(live) = state.live.as_deref() else { return };
        let (is_established, is_initiating) = (live.is_established, live.is_initiating);
        self.answers.remove(id);
        if is_established {
            self.renew_noise(id);
        } else {
            self.peers.end(id);
        }
        if is_initiating && self.wake(id).is_some() {
            self.send_initiation(id);
        }
    }

    fn renew_noise(&mut self, id: PeerId) {
        let Some(index) = self.peers.free_index() else { return };
        let Some((local, state)) = self.local.as_ref().zip(self.peers.get(id)) else { return };
        let noise = Noise::new(&local.identity, state.key, state.preshared_key.as_deref(), index);
        self.peers.renew(id, noise, index);
    }
}
