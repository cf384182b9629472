//! Where metrics are served: `ADDRESS:PORT`, a port alone on this machine only, or `off`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

/// `None` is off, over whatever a lower layer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address to listen on: write 127.0.0.1:9586, a port alone (on this machine only), or off"
)]
pub(crate) struct InvalidListen(String);

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        let text = text.trim();
        let port = text.parse::<u16>().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = match text {
            "off" => return Ok(Self(None)),
            _ => port.or_else(|_| text.parse()).ok().filter(|address| address.port() != 0),
        };
        address.map(|address| Self(Some(address))).ok_or_else(|| InvalidListen(text.to_owned()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Port(u16),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Port(port) => port.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback_and_written_again_it_is_the_same() {
        for (text, address) in [
            ("9586", Some("127.0.0.1:9586")),
            ("[::]:1", Some("[::]:1")),
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("off", None),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.0, address.map(|address| address.parse().unwrap()));
            assert_eq!(listen.to_string().parse(), Ok(listen));
        }
        for bad in ["", "0", "70000", "localhost:1", ":9586", "127.0.0.1", "127.0.0.1:0"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }
}
