//! What differs between operating systems: the clock that runs on through sleep, private files, the local socket, signals, routes, and notice of network
//! changes. One module per system with the same functions; where there is none yet, they fail with that reason.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported as system;

pub(crate) use system::{
    Alarm, Leftovers, LocalListener, LocalStream, NetworkWatch, Routes, Serving, SharedRoutes, StopSignals,
    UapiListener, boot_time, clean_up, connect_local, connect_uapi, create_new_private_file,
    create_private_dir, create_private_file, detach, hostname, inherited, interface_index, is_open_to_others,
    is_others_to_write, is_own_file, log_to_system, make_private, open_system_log, os_version,
    prepare_control_socket, recover, run_shell,
};

use ipnet::IpNet;
use std::{io, net::IpAddr, path::PathBuf};

/// What of the machine could not be changed for what this node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// For people.
    pub(crate) text: String,
    /// Claims, or addresses within them, that are not served for it. None: something is not taken back, or may be in the way.
    pub(crate) unserved: Vec<IpNet>,
}

/// Why WireGuard's tools cannot find an interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UapiError {
    #[error("another process serves {}: end it first", .0.display())]
    InUse(PathBuf),
    #[error("the configuration socket {} cannot be made: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// How this machine is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// Of interfaces that are up, sorted; neither loopback, link-local nor our own.
    pub(crate) addresses: Vec<IpAddr>,
    /// The same, each with the length of its network.
    pub(crate) networks: Vec<IpNet>,
    /// Where packets to the Internet leave from, IPv4 and IPv6, if they can.
    pub(crate) preferred: [Option<IpAddr>; 2],
}

impl Network {
    /// Whether connections made before are better made again: the way out is another, or there is one again. Losing it is
    /// no reason, since nothing could be redialled.
    pub(crate) fn is_another_than(&self, old: &Self) -> bool {
        let moved = |(new, old): (&Option<IpAddr>, &Option<IpAddr>)| new.is_some() && new != old;
        match self.preferred {
            [None, None] => self.addresses.iter().any(|address| !old.addresses.contains(address)),
            [_, _] => self.preferred.iter().zip(&old.preferred).any(moved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(addresses: &[&str], preferred: Option<&str>) -> Network {
        let parse = |text: &&str| text.parse().unwrap();
        Network {
            addresses: addresses.iter().map(parse).collect(),
            networks: Vec::new(),
            preferred: [preferred.as_ref().map(parse), None],
        }
    }

    #[test]
    fn only_a_new_way_out_is_another_network() {
        let (none, lan) = (network(&[], None), network(&["192.0.2.1"], None));
        let home = network(&["192.0.2.1"], Some("192.0.2.1"));
        let docker = network(&["172.17.0.1", "192.0.2.1"], Some("192.0.2.1"));
        let office = network(&["198.51.100.7"], Some("198.51.100.7"));
        for (old, new, expected) in [
            (&none, &lan, true),
            (&lan, &none, false),
            (&none, &home, true),
            (&home, &none, false),
            (&home, &docker, false),
            (&docker, &home, false),
            (&home, &office, true),
            (&home, &home, false),
        ] {
            assert_eq!(new.is_another_than(old), expected, "{old:?} to {new:?}");
        }
    }
}
