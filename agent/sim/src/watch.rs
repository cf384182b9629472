//! Peers whose silence the agent wants to hear of at once, as `agent-tunnel` has it.

use agent_core::{BootTime, io::TunnelEvent};
use proto::key::PublicKey;
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug)]
struct Watched {
    silence: Duration,
    is_told: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Watches(BTreeMap<PublicKey, Watched>);

impl Watches {
    pub(crate) fn set(&mut self, peer: PublicKey, silence: Option<Duration>) {
        match silence {
            Some(silence) => {
                self.0.entry(peer).or_insert(Watched { silence, is_told: false }).silence = silence;
            }
            None => drop(self.0.remove(&peer)),
        }
    }

    /// What is news, given since when the data of each peer with a session is unanswered. A session that ended is no answer.
    pub(crate) fn poll(
        &mut self,
        now: BootTime,
        unanswered_since: impl Fn(&PublicKey) -> Option<Option<BootTime>>,
    ) -> Vec<TunnelEvent> {
        let mut news = Vec::new();
        for (peer, watched) in &mut self.0 {
            let Some(since) = unanswered_since(peer) else { continue };
            match (since.map(|at| now.since(at)), watched.is_told) {
                (Some(elapsed), false) if elapsed >= watched.silence => {
                    watched.is_told = true;
                    news.push(TunnelEvent::Silent { peer: *peer, elapsed });
                }
                (None, true) => {
                    watched.is_told = false;
                    news.push(TunnelEvent::Heard { peer: *peer });
                }
                (Some(_) | None, _) => {}
            }
        }
        news
    }

    /// When the next silence is long enough.
    pub(crate) fn deadline(
        &self,
        unanswered_since: impl Fn(&PublicKey) -> Option<Option<BootTime>>,
    ) -> Option<BootTime> {
        let silent = self.0.iter().filter(|(_, watched)| !watched.is_told);
        silent.filter_map(|(peer, watched)| Some(unanswered_since(peer)?? + watched.silence)).min()
    }
}
