//! The thread: one loop that carries out commands, moves packets and lets time pass, each batch to completion.
//!
//! A turn takes what has arrived from the network, then up to a few large packets (or some dozens of small ones)
//! from the interface, and ends with one look at which of them have more (`wait`), which waits if nothing is known to be left: what has
//! nothing is not read. The clock is read once per turn.
//!
//! - `commands`: what the owner orders
//! - `configure`: what is asked through WireGuard's configuration protocol
//! - `handover`: what is another worker's
//! - `handshakes`: their share of a turn
//! - `inbound`: network to interface, and handshakes
//! - `outbound`: interface to network, and packets that wait
//! - `resets`: connections that another peer cannot go on with
//! - `timers`: sessions' time, keepalives, reports
//! - `unled`: what WireGuard's rules ask for where no owner decides

mod commands;
mod configure;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
pub mod fuzzing;
mod handover;
mod handshakes;
mod inbound;
mod outbound;
mod resets;
mod timers;
mod unled;

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU16, mpsc::Receiver},
    time::{Duration, Instant},
};

use crate::{
    Config, Device, Drops, Event, Filter, Policy, PrivateKey, Traffic,
    answers::Answers,
    capture::Taps,
    device::{LinkWatch, Reader, Writer},
    initiation::Opener,
    limit::{Activity, Strangers},
    noise::{HANDSHAKE_ROOM, Identity, Noise},
    outbox::Outbox,
    packet::padded_len,
    peer::{Live, PeerId},
    peers::Peers,
    queue::Budget,
    routes::Routes,
    socket::{Arena, MESSAGES, Path, Sockets},
    team::Team,
    tunnel::Request,
    wait::{self, Ready, Wakeups},
    watch::Watches,
};

use handshakes::Handshakes;
use resets::Resets;

pub(crate) type Events = Box<dyn FnMut(Event) + Send>;

/// Until it is looked again whether the others can take more.
const HOLD_UP: Duration = Duration::from_millis(1);

/// Why the loop ends.
enum Stop {
    Ordered,
    /// The interface was deleted.
    Gone(String),
    Fault(String),
}

/// The node's own key, and what is derived from it.
struct Local {
    key: PrivateKey,
    identity: Identity,
    opener: Opener,
}

impl Local {
    fn new(key: PrivateKey) -> Self {
        Self { identity: Identity::new(&key), opener: Opener::new(key.0.clone()), key }
    }
}

pub(crate) struct Worker {
    policy: Policy,
    local: Option<Local>,
    answers: Answers,
    device: Device,
    /// Told by [`Worker::link_watch`]; without one, taken for granted.
    is_up: bool,
    /// Ends before the device, whose descriptor it shares.
    link_watch: Option<LinkWatch>,
    addresses: Vec<IpAddr>,
    message_port: Option<u16>,
    fwmark: Option<u32>,
    /// 0 is any.
    wanted_port: u16,
    listen_port: Arc<AtomicU16>,
    outbox: Outbox,
    /// What may have something to read.
    ready: Ready,
    writer: Writer,
    peers: Peers,
    routes: Routes,
    filter: Option<Filter>,
    budget: Budget,
    drops: Drops,
    /// What removed peers carried.
    retired: Traffic,
    taps: Taps,
    events: Events,
    activity: Activity,
    strangers: Strangers,
    watches: Watches,
    resets: Resets,
    /// Connections, since the start.
    reset_connections: u64,
    now: Instant,
    next_tick_at: Instant,
    /// Live peers that this tick has still to come to.
    to_tick: Vec<PeerId>,
    handshakes: Handshakes,
    /// Handshakes and keepalives to come, one by one.
    revivals: BTreeSet<(Instant, PeerId)>,
    /// Where there are several workers.
    team: Option<Box<Team>>,
    /// Where single messages are built.
    scratch: [u8; HANDSHAKE_ROOM],
}

impl Worker {
    pub(crate) fn new(config: Config, sockets: Sockets, listen_port: Arc<AtomicU16>, events: Events) -> Self {
        let now = Instant::now();
        Self {
            policy: config.policy,
            local: config.private_key.map(Local::new),
            is_up: true,
            link_watch: None,
            answers: Answers::default(),
            writer: Writer::new(config.device.system(), MESSAGES),
            device: config.device,
            addresses: config.addresses,
            message_port: config.message_port,
            fwmark: config.fwmark,
            wanted_port: config.listen_port,
            listen_port,
            outbox: Outbox::new(sockets),
            ready: Ready::default(),
            peers: Peers::default(),
            routes: Routes::default(),
            filter: config.filter.map(|rules| Filter::new(rules, now)),
            budget: Budget::default(),
            drops: Drops::default(),
            retired: Traffic::default(),
            taps: Taps::default(),
            events,
            activity: Activity::new(now),
            strangers: Strangers::new(now),
            watches: Watches::default(),
            resets: Resets::default(),
            reset_connections: 0,
            now,
            next_tick_at: now,
            to_tick: Vec::new(),
            handshakes: Handshakes::default(),
            revivals: BTreeSet::new(),
            team: None,
            scratch: [0; HANDSHAKE_ROOM],
        }
    }

    /// From now on the worker is told whether its interface is up, and its MTU. One of several holds the watch for all.
    pub(crate) fn watch_link(&mut self, watch: Option<LinkWatch>) {
        self.is_up = false;
        self.link_watch = watch;
    }

    /// Works until shut down, or until the interface or the sockets are gone.
    pub(crate) fn run(&mut self, inbox: &Receiver<Request>, wakeups: &Wakeups) {
        let mut reader = Reader::new(self.device.system(), self.device.mtu());
        let mut arena = Arena::new();
        let stop = loop {
            if let Err(stop) = self.turn(inbox, wakeups, &mut reader, &mut arena) {
                break stop;
            }
        };
        match stop {
            Stop::Ordered => {}
            Stop::Gone(what) => self.on_gone(what),
            Stop::Fault(what) => self.on_fault(what),
        }
    }

    /// The last report.
    fn on_gone(&mut self, what: String) {
        if !self.is_to_report() {
            return;
        }
        let interface = self.device.name();
        match self.policy {
            Policy::Owner => tracing::error!(interface, what, "the data plane has stopped"),
            // Whoever configures the interface may delete it.
            Policy::WireGuard => tracing::info!(interface, what, "the data plane has stopped"),
        }
        self.emit(Event::Gone { what });
    }

    /// The last report.
    pub(crate) fn on_fault(&mut self, what: String) {
        if !self.is_to_report() {
            return;
        }
        tracing::error!(interface = self.device.name(), what, "the data plane has stopped");
        self.emit(Event::Fault { what });
    }

    fn turn(
        &mut self,
        inbox: &Receiver<Request>,
        wakeups: &Wakeups,
        reader: &mut Reader,
        arena: &mut Arena,
    ) -> Result<(), Stop> {
        self.now = Instant::now();
        self.handshakes.begin_turn();
        self.resets.begin_turn();
        let ordered = self.handle_requests(inbox, reader)?;
        if self.resets.is_waiting() {
            self.break_off();
        }
        let handed = self.take_handed();
        self.receive(arena);
        reader.fit(self.device.mtu());
        self.send(reader)?;
        self.hear_waiting();
        self.handle_timers();
        self.outbox.flush();
        self.blame();
        self.taps.flush();
        self.wake_team();
        self.wait(wakeups, ordered || handed || self.resets.is_waiting())
            .map_err(|error| Stop::Fault(format!("waiting for packets: {error}")))
    }

    /// Until there is something to do; only looks if there is already, `or` is known to be.
    fn wait(&mut self, wakeups: &Wakeups, is_busy: bool) -> io::Result<()> {
        let is_held_up = self.is_held_up();
        let device = (!is_held_up).then_some(self.device.system());
        let timeout = if is_busy || self.ready.is_any(is_held_up) {
            Some(Duration::ZERO)
        } else {
            // The turn's own time counts: what is due by now must not wait.
            let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            if is_held_up { Some(timeout.unwrap_or(HOLD_UP).min(HOLD_UP)) } else { timeout }
        };
        wait::wait(device, &self.outbox.sockets, wakeups, timeout, &mut self.ready)
    }

    fn emit(&mut self, event: Event) {
        (self.events)(event);
    }

    /// Makes a peer live, if it is not. `None` if that is impossible, or the peer is another worker's.
    fn wake(&mut self, id: PeerId) -> Option<&mut Live> {
        if self.peers.get(id)?.live.is_none() {
            let identity = &self.local.as_ref()?.identity;
            let index = self.peers.free_index()?;
            let state = self.peers.get(id)?;
            let noise = Noise::new(identity, state.key, state.preshared_key.as_deref(), index);
            let mark = self.watches.mark(id);
            self.peers.begin(id, Live { mark, ..Live::new(noise, index, self.now) });
        }
        self.peers.get(id)?.live.as_deref_mut()
    }

    /// Makes a peer idle, and its waiting packets go. Whether it was live.
    fn put_to_rest(&mut self, id: PeerId) -> bool {
        if let Some(state) = self.peers.get(id) {
            state.waiting.clear(&mut self.budget);
            state.is_announced = false;
        }
        self.answers.remove(id);
        self.peers.end(id)
    }

    /// The session is gone and nobody is making another.
    fn lose(&mut self, id: PeerId) {
        self.put_to_rest(id);
        self.revive_later(id);
        if let Some(peer) = self.peers.get(id).map(|state| state.key) {
            self.emit(Event::SessionLost { peer });
        }
    }

    /// Pads and seals a packet that is not in the reader's buffers.
    fn seal_copy(&mut self, id: PeerId, mut packet: Vec<u8>, path: Path) {
        packet.resize(padded_len(packet.len(), usize::from(self.device.mtu())), 0);
        let Some(state) = self.peers.get(id) else { return };
        if let Some(live) = state.live.as_deref_mut().filter(|live| live.is_established) {
            let sealed = self.outbox.seal(id, live.sealer(), &packet, path);
            state.record().tx_datagram_bytes += sealed;
        }
    }

    /// Lays what the sockets refused to the peers it was for.
    fn blame(&mut self) {
        for (id, refused) in self.outbox.take_blamed() {
            if let Some(state) = self.peers.get(id) {
                state.drops().send_failed += refused;
            }
        }
    }

    fn mark_active(&mut self, id: PeerId) {
        if let Some(state) = self.peers.get(id)
            && !state.is_active
        {
            state.is_active = true;
            self.activity.add(id);
        }
    }
}
