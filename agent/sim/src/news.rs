//! What servers tell without being asked: removal, draining, map steps, presence. A session is told the difference to what it was told.

use crate::{members, server::Process, service::refused, session::Progress, stream::StreamId, world::World};
use proto::{
    session::{Presence, Reason, ServerMessage},
    statement::NodeId,
};
use std::{collections::BTreeSet, rc::Rc};

impl World {
    /// Tells every session what is news to it.
    pub(crate) fn tell_news(&mut self, server: usize) {
        if !self.servers[server].is_alive() || self.servers[server].frozen {
            return;
        }
        let sessions: Vec<StreamId> = self.servers[server].sessions.keys().copied().collect();
        for id in sessions {
            if self.tell_general(server, id) {
                self.tell_map(server, id);
                self.tell_presence(server, id);
            }
        }
    }

    /// Removal, roots, the own certificate and draining; whether the session goes on.
    fn tell_general(&mut self, server: usize, id: StreamId) -> bool {
        let it = &mut self.servers[server];
        let (draining, state, live) = (it.process == Process::Draining, it.state.clone(), it.live.clone());
        let Some(session) = it.sessions.get_mut(&id) else { return false };
        let key = members::of(session.agent).key;
        if session.judged != state.version && !state.is_member(&key) {
            let last = match state.removal(&key) {
                Some(removal) => refused(Reason::Removed, None, removal),
                None => refused(Reason::UnknownNode, None, &[]),
            };
            self.end_session(server, id, last);
            return false;
        }
        session.judged = state.version;
        let servers_are_news = std::mem::replace(&mut session.servers_told, live.clone()) != live;
        if draining && !std::mem::replace(&mut session.drain_told, true) {
            self.answer(id, ServerMessage::Drain { reason: "sim".to_owned() });
        }
        self.tell_standing(server, id);
        if servers_are_news {
            let list = self.server_list(server);
            self.answer(id, ServerMessage::Servers(list));
        }
        true
    }

    fn tell_map(&mut self, server: usize, id: StreamId) {
        let it = &mut self.servers[server];
        let atlas = it.atlas.clone();
        let Some(session) = it.sessions.get_mut(&id) else { return };
        let (key, floor) = (members::of(session.agent).key, session.floor);
        let Some(serving) = &mut session.serving else { return };
        let message = match &serving.map {
            Progress::Resuming(_) if atlas.version < floor => return,
            Progress::Resuming(held) if held.digest == atlas.digest_for(&key) => None,
            Progress::Resuming(_) => {
                serving.map = Progress::Fetching;
                return self.answer(id, ServerMessage::Fetch(atlas.version));
            }
            Progress::Fetching => return,
            Progress::Level(told) if Rc::ptr_eq(told, &atlas) || atlas.version < told.version => return,
            Progress::Level(told) => {
                let delta = atlas.step(&key, &told.objects_for(&key));
                (!delta.put.is_empty() || !delta.drop.is_empty()).then_some(delta)
            }
        };
        serving.map = Progress::Level(atlas.clone());
        if let Some(delta) = message {
            session.floor = atlas.version;
            self.answer(id, ServerMessage::Map(delta));
        }
    }

    fn tell_presence(&mut self, server: usize, id: StreamId) {
        let it = &mut self.servers[server];
        let here = it.sessions.values().filter(|s| s.serving.is_some()).map(|s| members::of(s.agent).node);
        let seated = it.seats.keys().copied().filter(|node| it.state.is_node(*node));
        let online: BTreeSet<NodeId> = seated.chain(here).collect();
        let Some(serving) = it.sessions.get_mut(&id).and_then(|session| session.serving.as_mut()) else {
            return;
        };
        let told = serving.presence.replace(online.clone());
        let news = match told {
            Some(told) if told == online => return,
            Some(told) => Presence {
                whole: false,
                online: online.difference(&told).copied().collect(),
                offline: told.difference(&online).copied().collect(),
            },
            None => Presence { whole: true, online: online.into_iter().collect(), offline: Vec::new() },
        };
        self.answer(id, ServerMessage::Presence(news));
    }
}
