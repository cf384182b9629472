//! Who asks for a capture gets the data plane's end of it, with the peers' names; the rest is done elsewhere.

use super::driver::Driver;
use crate::{
    capture::{Names, Source},
    local::{Answer, Refusal},
};
use agent_tunnel::capture::Wanted;
use proto::key::PublicKey;

/// Names of which a mistyped one reminds, from 0 (not at all) to 1.
const ALIKE: f64 = 0.8;
const MAX_ALIKE: usize = 3;

impl Driver<'_> {
    pub(super) fn capture(&self, peer: Option<&str>, snaplen: u32) -> Answer {
        if self.world.plane.tunnel().strong_count() == 0 {
            return Answer::Refused(Refusal::not_enrolled());
        }
        let peers = self.snapshot().status.peers;
        let found = peer.map(|text| self.agent.find_peer(text).ok_or(text)).transpose();
        let peer = match found {
            Ok(peer) => peer.map(|PublicKey(key)| agent_tunnel::PublicKey(key)),
            Err(text) => {
                let names = peers.iter().map(|peer| peer.name.as_str());
                return Answer::Refused(Refusal::failed(unknown(text, names)));
            }
        };
        let names = Names(peers.into_iter().map(|peer| (peer.public_key.0, peer.name)).collect());
        let wanted = Wanted { peer, snaplen: snaplen as usize };
        Answer::Capture(Source { tunnel: self.world.plane.tunnel(), wanted, names })
    }
}

fn unknown<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> String {
    let lower = text.to_lowercase();
    let likeness = |name: &&str| strsim::jaro_winkler(&lower, &name.to_lowercase());
    let mut alike: Vec<(f64, &str)> = names.map(|name| (likeness(&name), name)).collect();
    alike.retain(|(likeness, _)| *likeness >= ALIKE);
    alike.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    alike.truncate(MAX_ALIKE);
    let alike: Vec<&str> = alike.into_iter().map(|(_, name)| name).collect();
    match alike.is_empty() {
        true => format!("no peer is known as {text}: `agent status` lists them"),
        false => format!("no peer is known as {text}; there is {}", alike.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_mistypes_a_name_is_told_those_like_it_best_first() {
        let names = ["database-1", "database-2", "laptop", "gate"];
        let said = unknown("Databse-2", names.into_iter());
        assert!(said.ends_with("there is database-2, database-1"), "{said}");
        assert!(unknown("x", names.into_iter()).contains("agent status"));
    }
}
