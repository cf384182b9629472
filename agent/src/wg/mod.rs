//! `agent wg`: a plain WireGuard interface, configured from outside by `wg`, `wg-quick` and their kin. It shares the data
//! plane with the mesh's agent and nothing else: no servers, no map, no state directory.
//!
//! [`Interface`] is one such interface, [`serve`] the configuration socket, which the mesh's interface has, too.

mod client;
mod server;

pub(crate) use client::{Caller, CallerError};
pub(crate) use server::{Access, serve};

use crate::platform::{StopSignals, UapiError, UapiListener};
use agent_tunnel::{
    Config, DEFAULT_MTU, Device, DeviceError, Event, Policy, StartError, Tunnel, WantedWorkers,
};
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
    #[error("the interface ended by a fault: {0}")]
    Fault(String),
}

/// What whoever starts us may have opened already.
#[derive(Debug, Default)]
pub(crate) struct Given {
    #[cfg(unix)]
    pub(crate) tun: Option<std::os::fd::OwnedFd>,
    #[cfg(unix)]
    pub(crate) uapi: Option<std::os::fd::OwnedFd>,
}

/// Why it is a good end, or what went wrong.
type End = Result<&'static str, WgError>;

/// A running interface.
#[derive(Debug)]
pub(crate) struct Interface {
    tunnel: Arc<Tunnel>,
    listener: UapiListener,
    signals: StopSignals,
    /// Of the data plane, once at most.
    ends: mpsc::UnboundedReceiver<End>,
}

impl Interface {
    /// The interface is down, without key and peers, and its socket listens.
    pub(crate) async fn open(name: &str, workers: WantedWorkers, mut given: Given) -> Result<Self, WgError> {
        let device = device(name, workers, &mut given)?;
        let name = device.name().to_owned();
        let listener = listener(&name, &mut given).await?;
        let signals = StopSignals::new().map_err(WgError::Signals)?;
        let config = Config {
            private_key: None,
            policy: Policy::WireGuard,
            device,
            listen_port: 0,
            fwmark: None,
            addresses: Vec::new(),
            message_port: None,
            filter: None,
        };
        let (sender, ends) = mpsc::unbounded_channel();
        let tunnel = agent_tunnel::start(config, move |event| {
            if let Some(end) = end(event) {
                // Nobody listens any more: we are ending.
                let _ = sender.send(end);
            }
        })?;
        tracing::info!(interface = name, "ready for wg");
        Ok(Self { tunnel: Arc::new(tunnel), listener, signals, ends })
    }

    /// Serves until a signal, or until interface or socket are deleted; then neither is left. Any other end is an error.
    pub(crate) async fn run(mut self) -> Result<(), WgError> {
        let fault = |what: &str| Err(WgError::Fault(what.to_owned()));
        let end = tokio::select! {
            biased;
            end = self.ends.recv() => end.unwrap_or_else(|| fault("the data plane is gone without a word")),
            () = self.signals.received() => Ok("a signal"),
            () = self.listener.removed() => Ok("the configuration socket was deleted"),
            () = serve(&self.listener, Arc::downgrade(&self.tunnel), Access::ReadAndWrite) => {
                fault("the configuration socket failed")
            }
        };
        let interface = self.tunnel.interface();
        match end {
            Ok(reason) => tracing::info!(interface, reason, "ending"),
            Err(error) => {
                tracing::error!(interface, %error, "ending");
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What ends the data plane.
fn end(event: Event) -> Option<End> {
    match event {
        Event::Gone { .. } => Some(Ok("the interface was deleted")),
        Event::Fault { what } => Some(Err(WgError::Fault(what))),
        Event::PacketWaiting { .. }
        | Event::HandshakeDone { .. }
        | Event::EndpointChanged { .. }
        | Event::Active(_)
        | Event::Unanswered { .. }
        | Event::Silent { .. }
        | Event::Heard { .. }
        | Event::Reset { .. }
        | Event::SessionLost { .. }
        | Event::UnknownIndex { .. }
        | Event::StaleInitiation { .. }
        | Event::Message { .. } => None,
    }
}

/// Where it is not made by us, its name is its own, and it has one queue.
fn device(name: &str, workers: WantedWorkers, given: &mut Given) -> Result<Device, DeviceError> {
    #[cfg(unix)]
    if let Some(descriptor) = given.tun.take() {
        return Device::adopt(descriptor);
    }
    Device::create_down_for(workers, name, DEFAULT_MTU)
}

async fn listener(name: &str, given: &mut Given) -> Result<UapiListener, UapiError> {
    #[cfg(unix)]
    if let Some(descriptor) = given.uapi.take() {
        return UapiListener::adopt(name, descriptor);
    }
    UapiListener::bind(name).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deletion_is_a_good_end_of_the_data_plane() {
        let what = || "whatever".to_owned();
        assert!(matches!(end(Event::Gone { what: what() }), Some(Ok(_))));
        let fault = end(Event::Fault { what: what() });
        assert!(matches!(fault, Some(Err(WgError::Fault(said))) if said == what()));
        assert!(end(Event::Active(Vec::new())).is_none());
    }
}
