//! The configuration socket's other end: what the command line asks of an interface that another program serves.

use crate::platform::{LocalStream, connect_uapi};
use agent_tunnel::uapi::errno;
use ipnet::IpNet;
use proto::key::PublicKey;
use std::{
    io::{self, ErrorKind},
    net::IpAddr,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use zeroize::Zeroizing;

/// A connection to one interface.
#[derive(Debug)]
pub(crate) struct Caller {
    interface: String,
    stream: BufReader<LocalStream>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallerError {
    #[error("no program on this machine serves an interface {0}: `agent wg {0}` makes one")]
    NotRunning(String),
    #[error("no permission to speak to whoever serves {0}: be root")]
    NoPermission(String),
    #[error("whoever serves {interface} cannot be asked: {source}")]
    Io { interface: String, source: io::Error },
    #[error("{interface} has no peer {peer}: give its public key, or an address that is routed to it")]
    UnknownPeer { interface: String, peer: String },
    #[error("{0} is captured too often already: end a capture first")]
    TooMany(String),
    #[error("whoever serves {interface} does not do this (error {errno}); `agent wg` of this version does")]
    Refused { interface: String, errno: i32 },
}

impl Caller {
    pub(crate) async fn connect(interface: &str) -> Result<Self, CallerError> {
        let interface = interface.to_owned();
        match connect_uapi(&interface).await {
            Ok(stream) => Ok(Self { interface, stream: BufReader::new(stream) }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Err(CallerError::NotRunning(interface))
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(CallerError::NoPermission(interface))
            }
            Err(source) => Err(CallerError::Io { interface, source }),
        }
    }

    /// A request, and the lines of its answer; they may contain secrets.
    async fn ask(&mut self, request: &str) -> Result<Zeroizing<String>, CallerError> {
        let failed = |source| CallerError::Io { interface: self.interface.clone(), source };
        self.stream.write_all(request.as_bytes()).await.map_err(failed)?;
        let mut answer = Zeroizing::new(String::new());
        loop {
            let begin = answer.len();
            if self.stream.read_line(&mut answer).await.map_err(failed)? == 0 {
                return Err(failed(ErrorKind::UnexpectedEof.into()));
            }
            let Some(errno) = answer[begin..].trim_end().strip_prefix("errno=") else { continue };
            let errno: i32 = errno.parse().unwrap_or(errno::EIO);
            // The empty line that ends it.
            self.stream.read_line(&mut Zeroizing::new(String::new())).await.map_err(failed)?;
            return match errno.abs() {
                0 => Ok(answer),
                errno::EBUSY => Err(CallerError::TooMany(self.interface.clone())),
                errno => Err(CallerError::Refused { interface: self.interface.clone(), errno }),
            };
        }
    }

    /// Begins a capture of one peer or all, whose stream follows.
    pub(crate) async fn capture(
        mut self,
        peer: Option<&str>,
        snaplen: u32,
    ) -> Result<BufReader<LocalStream>, CallerError> {
        let mut request = format!("capture=1\nsnaplen={snaplen}\n");
        if let Some(text) = peer {
            let described = self.ask("get=1\n\n").await?;
            let unknown =
                || CallerError::UnknownPeer { interface: self.interface.clone(), peer: text.into() };
            let key = find_peer(&described, text).ok_or_else(unknown)?;
            request.push_str(&format!("public_key={key}\n"));
        }
        self.ask(&format!("{request}\n")).await?;
        Ok(self.stream)
    }
}

/// The hexadecimal key of a peer that is named by its key in base64, or by an address that is routed to it.
fn find_peer(described: &str, text: &str) -> Option<String> {
    let address = text.parse::<IpAddr>().ok();
    let (mut current, mut best) = (None, None);
    for (name, value) in described.lines().filter_map(|line| line.split_once('=')) {
        match name {
            "public_key" if is_key(value, text) => return Some(value.to_owned()),
            "public_key" => current = Some(value),
            "allowed_ip" => {
                let prefix = value
                    .parse::<IpNet>()
                    .ok()
                    .filter(|prefix| address.is_some_and(|address| prefix.contains(&address)));
                let len = prefix.map(|prefix| prefix.prefix_len());
                if len.is_some() && len > best.map(|(len, _)| len) {
                    best = len.zip(current);
                }
            }
            _ => {}
        }
    }
    best.map(|(_, key)| key.to_owned())
}

fn is_key(hex: &str, text: &str) -> bool {
    let Ok(key) = text.parse::<PublicKey>() else { return false };
    key.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_found_by_its_key_and_by_the_most_specific_address() {
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        let described = format!(
            "listen_port=1\npublic_key={one}\nallowed_ip=10.0.0.0/8\npublic_key={two}\nallowed_ip=10.1.0.0/16\nallowed_ip=fd00::/8\n"
        );
        let found = |text: &str| find_peer(&described, text);
        assert_eq!(found(&PublicKey([1; 32]).to_string()), Some(one.clone()));
        assert_eq!(found("10.2.0.1"), Some(one));
        assert_eq!(found("10.1.0.1"), Some(two.clone()));
        assert_eq!(found("fd00::1"), Some(two));
        for unknown in ["11.0.0.1", "name", "", &PublicKey([3; 32]).to_string()] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
