//! The address of a control server, as given to `--servers` and told by servers: `host:port` or `https://host:port`.

use crate::{CONTROL_PORT, Invalid};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// A host (name or IP address) and a port. Two that are equal are one server address, however they were written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl {
    host: String,
    port: u16,
}

impl ServerUrl {
    /// Lower case; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address itself where the host is an IP address: nothing to resolve.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Reads a comma-separated list, keeping the order and dropping duplicates.
    ///
    /// # Errors
    /// The list is empty, or an entry of it is no server address.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Invalid> {
        let mut urls = Vec::new();
        for entry in text.split(',') {
            let url = entry.parse()?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(urls)
    }
}

impl From<SocketAddr> for ServerUrl {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for ServerUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let refuse = |reason: &str| Invalid::new("server", format_args!("{text:?} {reason}"));
        if text.is_empty() {
            return Err(Invalid::new("server", "an empty entry; expected host:port"));
        }
        let authority = match text.split_once("://") {
            Some(("https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some((scheme, _)) => return Err(refuse(&format!("has scheme {scheme:?}; only https is spoken"))),
            None => text,
        };
        let (host, port) = split_port(authority).ok_or_else(|| refuse("is not host:port"))?;
        let port = match port {
            None => CONTROL_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(refuse("has no valid port (1 to 65535)")),
                Ok(port) => port,
            },
        };
        Ok(Self { host: valid_host(host).ok_or_else(|| refuse("has no valid host"))?, port })
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.to_string()
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match after {
            "" => Some((host, None)),
            after => Some((host, Some(after.strip_prefix(':')?))),
        };
    }
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Some((authority, None));
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

fn valid_host(host: &str) -> Option<String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(ip.to_string());
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (name.len() <= 253 && !numeric && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_spellings_mean_the_same_server() {
        for text in
            ["Vpn.Example.com", "vpn.example.com:7443", "https://vpn.example.com:7443/", " vpn.example.com. "]
        {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), "vpn.example.com:7443", "{text}");
        }
        assert_eq!("[2001:DB8::1]:99".parse::<ServerUrl>().unwrap().to_string(), "[2001:db8::1]:99");
        assert_eq!("2001:db8::1".parse::<ServerUrl>().unwrap().to_string(), "[2001:db8::1]:7443");
    }

    #[test]
    fn what_is_no_server_is_refused_by_name() {
        for text in [
            "",
            " ",
            "http://a:1",
            "a:0",
            "a:70000",
            "a:b",
            "a b",
            "-a",
            "a..b",
            "[::1",
            "[::1]x",
            "999.1.1.1",
            "a/b",
            ":1",
        ] {
            assert!(text.parse::<ServerUrl>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_keeps_its_order_and_drops_duplicates() {
        let list = ServerUrl::parse_list("b:1, a:2,https://b:1").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b:1", "a:2"]);
        assert!(ServerUrl::parse_list("a,,b").is_err());
    }
}
