//! The data plane as the event loop sees it: the interface with its addresses and routes, the tunnel's thread, and the translation between the core's words and
//! the tunnel's.

use super::{MARK, rules, serving::Serving};
use crate::{
    config::Settings,
    platform::{self, Routes, SharedRoutes, UapiListener},
    wg,
};
use agent_core::io::{TunnelCommand, TunnelEvent};
use agent_tunnel::{
    Command, Config, DEFAULT_MTU, Device, DeviceError, Event, Peer, Policy, PrivateKey, StartError, Tunnel,
    WantedWorkers,
};
use ipnet::IpNet;
use proto::{AGENT_PORT, key::NodeSecret};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// So many events wait for the event loop; beyond, those that may be lost are.
const BACKLOG: usize = 4096;
/// A killed predecessor's interface goes a moment after its lock.
const NAME_RETRIES: u32 = 15;
const NAME_RETRY_DELAY: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaneError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What goes through the interface, and to what of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Routed into the tunnel.
    pub(super) overlay: Vec<IpNet>,
    /// Served to others.
    pub(super) served: Vec<IpNet>,
}

/// What [`Plane::configure`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Configured {
    Done,
    /// The addresses are others than those that the tunnel runs with: plane and core must start anew.
    NeedsRestart,
}

pub(super) struct Plane {
    interface: String,
    listen_port: u16,
    workers: WantedWorkers,
    secret: NodeSecret,
    device: Option<Device>,
    tunnel: Option<Arc<Tunnel>>,
    addresses: Vec<IpAddr>,
    wanted: Wanted,
    routes: SharedRoutes,
    serving: Serving,
    /// Shows the interface to `wg`.
    uapi: Option<JoinHandle<()>>,
    sender: EventSender,
}

/// What the tunnel reports, in order.
pub(super) struct Events {
    receiver: mpsc::UnboundedReceiver<Event>,
    queued: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct EventSender {
    sender: mpsc::UnboundedSender<Event>,
    queued: Arc<AtomicUsize>,
}

impl Plane {
    /// Makes the interface at once, so that a start that cannot work fails at once.
    pub(super) async fn new(
        interface: &str,
        settings: &Settings,
        secret: &NodeSecret,
        state_dir: &Path,
    ) -> Result<(Self, Events), PlaneError> {
        let device = create(interface, settings.workers).await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Arc::default();
        let events = Events { receiver, queued: Arc::clone(&queued) };
        let routes = SharedRoutes::default();
        let plane = Self {
            interface: interface.to_owned(),
            listen_port: settings.listen_port,
            workers: settings.workers,
            secret: secret.clone(),
            device: Some(device),
            tunnel: None,
            addresses: Vec::new(),
            wanted: Wanted::default(),
            routes: Arc::clone(&routes),
            serving: Serving::start(platform::Serving::new(interface, state_dir, routes)),
            uapi: None,
            sender: EventSender { sender, queued },
        };
        Ok((plane, events))
    }

    /// Without addresses the node is no member: the tunnel goes.
    pub(super) async fn configure(
        &mut self,
        addresses: Vec<IpAddr>,
        wanted: Wanted,
        masquerade: bool,
    ) -> Result<Configured, PlaneError> {
        if addresses.is_empty() {
            self.stop().await;
            return Ok(Configured::Done);
        }
        if self.tunnel.is_some() && self.addresses != addresses {
            return Ok(Configured::NeedsRestart);
        }
        if self.tunnel.is_none() {
            self.start(addresses).await?;
        }
        let is_routed = self.wanted.overlay == wanted.overlay || self.route(&wanted.overlay).await;
        self.serving.order(&wanted.served, masquerade);
        self.wanted = wanted;
        if !is_routed {
            // With the next configuration it is tried again.
            self.wanted.overlay.clear();
        }
        Ok(Configured::Done)
    }

    async fn start(&mut self, addresses: Vec<IpAddr>) -> Result<(), PlaneError> {
        let device = match self.device.take() {
            Some(device) => device,
            None => create(&self.interface, self.workers).await?,
        };
        for address in &addresses {
            match device.set_addresses(&[IpNet::from(*address)]) {
                Ok(()) => {}
                Err(error) if address.is_ipv6() => {
                    tracing::info!(%address, %error, "no IPv6 in the tunnel: this system has it switched off");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let config = Config {
            private_key: Some(PrivateKey::from(*self.secret.expose())),
            policy: Policy::Owner,
            device,
            listen_port: self.listen_port,
            fwmark: Some(MARK),
            addresses: addresses.clone(),
            message_port: Some(AGENT_PORT),
            // Until the core says what may be opened here: nothing.
            filter: Some(Vec::new()),
        };
        let sender = self.sender.clone();
        let tunnel = agent_tunnel::start(config, move |event| sender.send(event))?;
        tracing::info!(interface = %self.interface, ?addresses, listen_port = tunnel.listen_port(), "the tunnel is up");
        if tunnel.listen_port() != self.listen_port {
            tracing::info!(wanted = self.listen_port, "the port is taken; another is used");
        }
        self.tunnel = Some(Arc::new(tunnel));
        self.show();
        self.addresses = addresses;
        Ok(())
    }

    /// Lets `wg show` see the interface. It is of no use to the mesh: the agent neither waits for it nor needs it.
    fn show(&mut self) {
        let (interface, tunnel) = (self.interface.clone(), self.tunnel());
        self.uapi = Some(tokio::spawn(async move {
            match UapiListener::bind(&interface).await {
                Ok(listener) => wg::serve(&listener, tunnel, wg::Access::ReadOnly).await,
                Err(error) => tracing::info!(%error, "`wg show` will not see the interface"),
            }
        }));
    }

    /// Whether everything is routed.
    async fn route(&mut self, overlay: &[IpNet]) -> bool {
        let mut shared = self.routes.lock().await;
        let routes =
            match shared.take().map_or_else(|| Routes::new(&self.interface, &self.addresses, MARK), Ok) {
                Ok(routes) => shared.insert(routes),
                Err(error) => {
                    tracing::error!(%error, "nothing can be routed into the tunnel");
                    return false;
                }
            };
        let routed = routes.set(overlay).await;
        if let Err(error) = &routed {
            tracing::error!(%error, "not everything can be routed into the tunnel");
        }
        routed.is_ok()
    }

    /// Returns when the machine serves more, or less, than before. Cancel-safe.
    pub(super) async fn served(&mut self) {
        self.serving.changed().await;
    }

    /// The network is another now.
    pub(super) fn look_again(&self) {
        self.serving.look_again();
    }

    /// What of the machine could not be changed, for people.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> {
        self.serving.troubles().iter().map(|trouble| trouble.text.clone())
    }

    /// What of that which the node claims cannot be served, and why.
    pub(super) fn unserved(&self) -> BTreeMap<IpNet, String> {
        let mut unserved = BTreeMap::<IpNet, String>::new();
        for trouble in self.serving.troubles() {
            for prefix in &trouble.unserved {
                let reason = unserved.entry(*prefix).or_default();
                if !reason.is_empty() {
                    reason.push_str("; ");
                }
                reason.push_str(&trouble.text);
            }
        }
        unserved
    }

    /// Serves nothing any more; the tunnel stays.
    pub(super) async fn unserve(&mut self) {
        self.serving.clear().await;
    }

    /// Takes away interface, routes and rules. What was sent before still goes out.
    pub(super) async fn stop(&mut self) {
        self.serving.clear().await;
        let routes = self.routes.lock().await.take();
        if let Some(routes) = routes {
            routes.remove().await;
        }
        if let Some(uapi) = self.uapi.take() {
            uapi.abort();
            // Cancelled, as it was told.
            let _ = uapi.await;
        }
        self.device = None;
        self.addresses.clear();
        self.wanted = Wanted::default();
        let Some(mut tunnel) = self.tunnel.take() else { return };
        // A status that is being written may hold it for a moment; the last owner's drop ends the thread.
        while let Err(held) = Arc::try_unwrap(tunnel) {
            tunnel = held;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(super) fn command(&self, command: TunnelCommand) {
        if let Some(tunnel) = &self.tunnel {
            tunnel.command(translate(command));
        }
    }

    /// 0 until the tunnel is up.
    pub(super) fn listen_port(&self) -> u16 {
        self.tunnel.as_ref().map_or(0, |tunnel| tunnel.listen_port())
    }

    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    pub(super) fn tunnel(&self) -> Weak<Tunnel> {
        self.tunnel.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }
}

async fn create(interface: &str, workers: WantedWorkers) -> Result<Device, DeviceError> {
    let mut retries = NAME_RETRIES;
    loop {
        match Device::create_for(workers, interface, DEFAULT_MTU) {
            Err(DeviceError::NameInUse(_)) if retries > 0 => {
                retries -= 1;
                tokio::time::sleep(NAME_RETRY_DELAY).await;
            }
            created => return created,
        }
    }
}

impl EventSender {
    /// On the tunnel's thread. State changes are as many as there are peers, and always told; traffic is not bounded by
    /// anything, and told while somebody listens.
    fn send(&self, event: Event) {
        let may_be_lost = match &event {
            Event::Message { .. }
            | Event::Active(_)
            | Event::UnknownIndex { .. }
            | Event::StaleInitiation { .. } => true,
            Event::PacketWaiting { .. }
            | Event::HandshakeDone { .. }
            | Event::EndpointChanged { .. }
            | Event::Unanswered { .. }
            | Event::Silent { .. }
            | Event::Heard { .. }
            | Event::Reset { .. }
            | Event::SessionLost { .. }
            | Event::Gone { .. }
            | Event::Fault { .. } => false,
        };
        if may_be_lost && self.queued.load(Ordering::Relaxed) >= BACKLOG {
            return;
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        // Without an event loop there is nobody to tell.
        let _ = self.sender.send(event);
    }
}

impl Events {
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        match self.receiver.recv().await {
            Some(event) => {
                self.queued.fetch_sub(1, Ordering::Relaxed);
                event
            }
            None => std::future::pending().await,
        }
    }
}

fn translate(command: TunnelCommand) -> Command {
    let key = |peer: proto::key::PublicKey| agent_tunnel::PublicKey(peer.0);
    match command {
        TunnelCommand::Upsert { peer, allowed_ips, sources } => {
            Command::Upsert(Peer { key: key(peer), allowed_ips, sources, preshared_key: None })
        }
        TunnelCommand::Remove { peer } => Command::Remove(key(peer)),
        TunnelCommand::Initiate { peer, endpoints } => Command::Initiate { peer: key(peer), endpoints },
        TunnelCommand::Forget { peer } => Command::Forget { peer: key(peer) },
        TunnelCommand::SetKeepalive { peer, interval } => Command::SetKeepalive { peer: key(peer), interval },
        TunnelCommand::SetEndpoint { peer, endpoint } => Command::SetEndpoint { peer: key(peer), endpoint },
        TunnelCommand::Message { peer, payload, via } => {
            Command::SendMessage { peer: key(peer), payload, via }
        }
        TunnelCommand::SetRules(rules) => Command::SetRules(rules::translate(rules)),
        TunnelCommand::Watch { peer, silence } => Command::Watch { peer: key(peer), silence },
        TunnelCommand::Withhold { prefix, withheld } => Command::Withhold { prefix, withheld },
        TunnelCommand::Reset { prefix, from } => Command::Reset { prefix, from: key(from) },
        TunnelCommand::Rebind => Command::Rebind,
    }
}

/// `Err`: the data plane has stopped, and why.
pub(super) fn event(event: Event) -> Result<TunnelEvent, String> {
    let key = |peer: agent_tunnel::PublicKey| proto::key::PublicKey(peer.0);
    Ok(match event {
        Event::PacketWaiting { peer } => TunnelEvent::PacketWaiting { peer: key(peer) },
        Event::HandshakeDone { peer, endpoint, initiator: _ } => {
            TunnelEvent::HandshakeDone { peer: key(peer), endpoint }
        }
        Event::EndpointChanged { peer, endpoint } => {
            TunnelEvent::EndpointChanged { peer: key(peer), endpoint }
        }
        Event::Active(peers) => TunnelEvent::Active(peers.into_iter().map(key).collect()),
        Event::Unanswered { peer } => TunnelEvent::Unanswered { peer: key(peer) },
        Event::Silent { peer, elapsed } => TunnelEvent::Silent { peer: key(peer), elapsed },
        Event::Heard { peer } => TunnelEvent::Heard { peer: key(peer) },
        Event::Reset { prefix, from, connections } => {
            TunnelEvent::Reset { prefix, from: key(from), connections }
        }
        Event::SessionLost { peer } => TunnelEvent::SessionLost { peer: key(peer) },
        Event::UnknownIndex { from } => TunnelEvent::UnknownIndex { from },
        Event::StaleInitiation { peer, from } => TunnelEvent::StaleInitiation { peer: key(peer), from },
        Event::Message { peer, payload, from } => TunnelEvent::Message { peer: key(peer), payload, from },
        Event::Gone { what } | Event::Fault { what } => return Err(what),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_messages_is_bounded_and_loses_no_state_change() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Arc::default();
        let sender = EventSender { sender, queued: Arc::clone(&queued) };
        let mut events = Events { receiver, queued };
        let peer = agent_tunnel::PublicKey([1; 32]);
        let from = "192.0.2.1:1".parse().unwrap();
        for _ in 0..2 * BACKLOG {
            sender.send(Event::Message { peer, payload: Vec::new(), from });
        }
        sender.send(Event::SessionLost { peer });
        for _ in 0..BACKLOG {
            assert!(matches!(events.next().await, Event::Message { .. }));
        }
        assert_eq!(events.next().await, Event::SessionLost { peer });
        sender.send(Event::Active(vec![peer]));
        assert_eq!(events.next().await, Event::Active(vec![peer]));
    }
}
