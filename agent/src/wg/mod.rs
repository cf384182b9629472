//! `agent wg`: a plain WireGuard interface, configured from outside by `wg`, `wg-quick` and their kin. It shares the data
//! plane with the mesh's agent and nothing else: no servers, no map, no state directory.
//!
//! [`Interface`] is one such interface, [`serve`] the configuration socket, which the mesh's interface has, too.

mod server;

pub(crate) use server::{Access, serve};

use crate::platform::{StopSignals, UapiError, UapiListener};
use agent_tunnel::{Config, DEFAULT_MTU, Device, DeviceError, Event, Policy, StartError, Tunnel};
use std::{io, sync::Arc};
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
pub(crate) enum WgError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Socket(#[from] UapiError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// What whoever starts us may have opened already.
#[derive(Debug, Default)]
pub(crate) struct Given {
    #[cfg(unix)]
    pub(crate) tun: Option<std::os::fd::OwnedFd>,
    #[cfg(unix)]
    pub(crate) uapi: Option<std::os::fd::OwnedFd>,
}

/// A running interface.
#[derive(Debug)]
pub(crate) struct Interface {
    tunnel: Arc<Tunnel>,
    listener: UapiListener,
    signals: StopSignals,
    faults: mpsc::UnboundedReceiver<String>,
}

impl Interface {
    /// The interface is down, without key and peers, and its socket listens.
    pub(crate) fn open(name: &str, mut given: Given) -> Result<Self, WgError> {
        let device = device(name, &mut given)?;
        let name = device.name().to_owned();
        let listener = listener(&name, &mut given)?;
        let signals = StopSignals::new().map_err(WgError::Signals)?;
        let config = Config {
            private_key: None,
            policy: Policy::WireGuard,
            device,
            listen_port: 0,
            fwmark: None,
            addresses: Vec::new(),
            message_port: None,
        };
        let (sender, faults) = mpsc::unbounded_channel();
        let tunnel = agent_tunnel::start(config, move |event| {
            if let Event::Fault { what } = event {
                // Nobody listens any more: we are ending.
                let _ = sender.send(what);
            }
        })?;
        tracing::info!(interface = name, "ready for wg");
        Ok(Self { tunnel: Arc::new(tunnel), listener, signals, faults })
    }

    /// Serves until a signal, or until interface or socket are deleted; then neither is left.
    pub(crate) async fn run(mut self) {
        let reason = tokio::select! {
            () = self.signals.received() => "a signal",
            _ = self.faults.recv() => "the interface was deleted",
            () = self.listener.removed() => "the configuration socket was deleted",
            () = serve(&self.listener, Arc::downgrade(&self.tunnel), Access::ReadAndWrite) => "the socket failed",
        };
        tracing::info!(interface = self.tunnel.interface(), reason, "ending");
    }
}

/// Where it is not made by us, its name is its own.
fn device(name: &str, given: &mut Given) -> Result<Device, DeviceError> {
    #[cfg(unix)]
    if let Some(descriptor) = given.tun.take() {
        return Device::adopt(descriptor);
    }
    Device::create_down(name, DEFAULT_MTU)
}

fn listener(name: &str, given: &mut Given) -> Result<UapiListener, UapiError> {
    #[cfg(unix)]
    if let Some(descriptor) = given.uapi.take() {
        return UapiListener::adopt(name, descriptor);
    }
    UapiListener::bind(name)
}
