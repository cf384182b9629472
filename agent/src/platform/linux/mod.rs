//! Linux.

mod clock;
mod command;
mod files;
mod firewall;
mod forwarding;
mod local;
mod memory;
mod nat;
mod network;
mod nft;
mod place;
mod process;
mod routes;
mod serving;
mod uapi;

pub(crate) use clock::{Alarm, boot_time};
pub(crate) use command::{Leftovers, run_shell};
pub(crate) use files::{
    create_new_private_file, create_private_dir, create_private_file, is_open_to_others, is_others_to_write,
    is_own_file, make_private,
};
pub(crate) use local::{LocalListener, LocalStream, connect_local};
pub(crate) use network::{NetworkWatch, prepare_control_socket};
pub(crate) use process::{StopSignals, detach, hostname, log_to_system, open_system_log, os_version};
pub(crate) use routes::{Routes, SharedRoutes, clean_up};
pub(crate) use serving::{Serving, recover};
pub(crate) use uapi::{UapiListener, connect_uapi, inherited, interface_index};
