//! Prefixes as people write them: `10.1.0.0/24`, or an address alone, which is the prefix of that address.
//!
//! What has bits set behind its length is refused: somebody meant the network, or the address, and which of them is not to be guessed. What arrives from
//! other programs is parsed where it arrives.

use ipnet::IpNet;
use std::net::IpAddr;

/// Text that is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("{0:?} is no prefix: write 10.1.0.0/24 or 10.99.0.1")]
    NoPrefix(String),
    #[error("{0} has bits set behind its length: {network} or {address} is meant", network = .0.trunc(), address = IpNet::from(.0.addr()))]
    HostBits(IpNet),
}

/// Reads a prefix without host bits.
///
/// # Errors
/// The text is no prefix, or has host bits; then both that can be meant are told.
pub fn parse(text: &str) -> Result<IpNet, PrefixError> {
    let text = text.trim();
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let prefix = parsed.map_err(|_| PrefixError::NoPrefix(text.to_owned()))?;
    match prefix == prefix.trunc() {
        true => Ok(prefix),
        false => Err(PrefixError::HostBits(prefix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_is_its_own_prefix() {
        for (text, read) in [
            ("10.1.0.0/24", "10.1.0.0/24"),
            (" 10.99.0.1 ", "10.99.0.1/32"),
            ("fd00::1", "fd00::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(parse(text), Ok(read.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_none_or_has_host_bits_is_refused_with_what_can_be_meant() {
        for (text, reason) in [
            ("", "\"\" is no prefix"),
            ("lan", "\"lan\" is no prefix"),
            ("10.1.0.0/33", "write 10.1.0.0/24"),
            (
                "10.1.0.7/24",
                "10.1.0.7/24 has bits set behind its length: 10.1.0.0/24 or 10.1.0.7/32 is meant",
            ),
            ("fd00::1/64", "fd00::/64 or fd00::1/128 is meant"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
