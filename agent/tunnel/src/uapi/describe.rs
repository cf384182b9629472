//! What a `get` answers.

use std::{
    fmt::Write,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::{Drops, PeerDrops, PresharedKey, PrivateKey, PublicKey};

/// What a peer's lines take, with two prefixes.
const PEER_BYTES: usize = 512;

/// The whole configuration, with the peers' state.
#[derive(Debug, Clone)]
pub struct Description {
    pub private_key: Option<PrivateKey>,
    pub listen_port: u16,
    pub fwmark: Option<u32>,
    pub drops: Drops,
    pub peers: Vec<PeerDescription>,
}

#[derive(Debug, Clone)]
pub struct PeerDescription {
    pub key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub endpoint: Option<SocketAddr>,
    /// By the wall clock as it was then.
    pub last_handshake_at: Option<SystemTime>,
    /// Of all authentic datagrams, as WireGuard counts: handshakes, keepalives, headers and padding included.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Of what is inside the tunnel.
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub drops: PeerDrops,
    pub keepalive: Option<Duration>,
    pub allowed_ips: Vec<IpNet>,
}

impl Description {
    /// The answer without its `errno`; it contains secrets.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity((self.peers.len() + 1) * PEER_BYTES));
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        if let Some(key) = &self.private_key {
            writeln!(out, "private_key={}", *hex(key.0.as_bytes()))?;
        }
        writeln!(out, "listen_port={}", self.listen_port)?;
        if let Some(mark) = self.fwmark {
            writeln!(out, "fwmark={mark}")?;
        }
        write_drops(self.drops.named(), out)?;
        self.peers.iter().try_for_each(|peer| peer.write(out))
    }
}

/// Keys that are ours alone, where there is something to tell: `wg` and its kin pass over what they do not know.
fn write_drops(drops: impl Iterator<Item = (&'static str, u64)>, out: &mut String) -> std::fmt::Result {
    drops
        .filter(|(_, count)| *count > 0)
        .try_for_each(|(reason, count)| writeln!(out, "drop_{reason}={count}"))
}

impl PeerDescription {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let preshared = self.preshared_key.as_ref().map_or([0; 32], |key| key.0);
        let handshake = self.last_handshake_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let handshake = handshake.unwrap_or_default();
        // Whole seconds; less than one is still switched on.
        let keepalive = self.keepalive.map_or(0, |interval| interval.as_secs().max(1));
        writeln!(out, "public_key={}", *hex(&self.key.0))?;
        writeln!(out, "preshared_key={}", *hex(&preshared))?;
        writeln!(out, "protocol_version=1")?;
        if let Some(endpoint) = self.endpoint {
            writeln!(out, "endpoint={endpoint}")?;
        }
        writeln!(out, "last_handshake_time_sec={}", handshake.as_secs())?;
        writeln!(out, "last_handshake_time_nsec={}", handshake.subsec_nanos())?;
        writeln!(out, "tx_bytes={}", self.tx_bytes)?;
        writeln!(out, "rx_bytes={}", self.rx_bytes)?;
        for (key, count) in [("tx_packets", self.tx_packets), ("rx_packets", self.rx_packets)] {
            if count > 0 {
                writeln!(out, "{key}={count}")?;
            }
        }
        write_drops(self.drops.named(), out)?;
        writeln!(out, "persistent_keepalive_interval={keepalive}")?;
        self.allowed_ips.iter().try_for_each(|prefix| writeln!(out, "allowed_ip={prefix}"))
    }
}

fn hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::{Decoder, Request};

    fn description() -> Description {
        Description {
            private_key: Some(PrivateKey::from([0xab; 32])),
            listen_port: 51_820,
            fwmark: Some(7),
            drops: Drops { no_route: 3, ..Drops::default() },
            peers: vec![PeerDescription {
                key: PublicKey([1; 32]),
                preshared_key: None,
                endpoint: Some("[2001:db8::1]:5".parse().unwrap()),
                last_handshake_at: Some(UNIX_EPOCH + Duration::new(5, 6)),
                rx_bytes: 10,
                tx_bytes: 11,
                rx_packets: 2,
                tx_packets: 0,
                drops: PeerDrops { bad_source: 4, ..PeerDrops::default() },
                keepalive: Some(Duration::from_millis(500)),
                allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()],
            }],
        }
    }

    #[test]
    fn an_answer_has_every_line_that_tools_expect() {
        let expected = format!(
            "private_key={}\nlisten_port=51820\nfwmark=7\ndrop_no_route=3\npublic_key={}\npreshared_key={}\nprotocol_version=1\n\
             endpoint=[2001:db8::1]:5\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=11\n\
             rx_bytes=10\nrx_packets=2\ndrop_bad_source=4\npersistent_keepalive_interval=1\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/64\n",
            "ab".repeat(32),
            "01".repeat(32),
            "00".repeat(32)
        );
        assert_eq!(*description().to_text(), expected);
    }

    #[test]
    fn what_is_absent_is_left_out_or_zero() {
        let mut bare = description();
        (bare.private_key, bare.fwmark) = (None, None);
        (bare.peers[0].endpoint, bare.peers[0].last_handshake_at, bare.peers[0].keepalive) =
            (None, None, None);
        let text = bare.to_text();
        assert!(!text.contains("private_key=") && !text.contains("fwmark") && !text.contains("endpoint"));
        assert!(text.contains("_sec=0\n") && text.contains("persistent_keepalive_interval=0\n"));
    }

    #[test]
    fn what_get_tells_of_the_configuration_set_understands() {
        let text = description().to_text();
        let states = ["last_handshake", "rx_", "tx_", "drop_"];
        let lines = text.lines().filter(|line| !states.iter().any(|state| line.starts_with(state)));
        let set = format!("set=1\n{}\n\n", lines.collect::<Vec<_>>().join("\n"));
        let request = Decoder::new(|_| None).next(&mut set.as_bytes()).unwrap().unwrap();
        let Request::Set(changes) = request else { panic!("a set") };
        assert_eq!(changes.listen_port, Some(51_820));
        assert_eq!(changes.peers[0].allowed_ips.len(), 2);
        assert_eq!(changes.peers[0].preshared_key, Some(None));
    }
}
