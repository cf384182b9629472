//! The handle on a running data plane: what its owner holds while the threads work.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use crate::{
    Command, Config, Counters, Drops, Event, PeerStats, Policy, Workers,
    capture::{Capture, Packets, Tap, Wanted},
    device::{Link, LinkWatch},
    inbox::{Inbox, Inboxes},
    shard,
    socket::Sockets,
    team::Team,
    uapi::{Changes, Description},
    wait::{self, Wakeups},
    worker::{self, Worker},
};

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no UDP socket could be opened: {0}")]
    Socket(io::Error),
    #[error("the sockets' firewall mark could not be set (it needs CAP_NET_ADMIN): {0}")]
    Mark(io::Error),
    #[error("the data plane's thread could not be started: {0}")]
    Thread(io::Error),
}

/// Why [`Tunnel::configure`] changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error("UDP port {port} cannot be listened on: {source}")]
    Port { port: u16, source: io::Error },
    #[error("the sockets' firewall mark could not be set (it needs CAP_NET_ADMIN): {0}")]
    Mark(io::Error),
    #[error("the interface is gone")]
    Stopped,
}

/// What the thread is asked: an order, or a copy of its counters.
#[derive(Debug)]
pub(crate) enum Request {
    Command(Command),
    Configure(Box<Changes>, SyncSender<Result<(), ConfigureError>>),
    Describe(SyncSender<Description>),
    Link(Link),
    Stats(SyncSender<Vec<PeerStats>>),
    Counters(SyncSender<Counters>),
    Capture(Tap),
    /// Captures are over.
    TidyCaptures,
}

/// A running data plane. Dropping it stops its threads, closes the sockets and removes the interface.
#[derive(Debug)]
pub struct Tunnel {
    inboxes: Inboxes,
    listen_port: Arc<AtomicU16>,
    interface: String,
    /// How many are running.
    captures: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the sockets (in the caller's network namespace) and starts a thread for each queue of the interface. `events` is
/// called on those threads, one at a time, and must not block.
pub fn start(config: Config, events: impl FnMut(Event) + Send + 'static) -> Result<Tunnel, StartError> {
    let workers = config.device.workers();
    let sockets = match workers {
        Workers::ONE => vec![Sockets::open(config.listen_port, config.fwmark)?],
        _ => Sockets::open_group(config.listen_port, config.fwmark, workers)?,
    };
    let (inboxes, seats) = seats(workers).map_err(StartError::Thread)?;
    let mut tunnel = Tunnel {
        inboxes,
        listen_port: Arc::new(AtomicU16::new(sockets[0].port())),
        interface: config.device.name().to_owned(),
        captures: Arc::default(),
        threads: Vec::new(),
    };
    let mut link = watch_link(&config, &tunnel.inboxes);
    let is_watched = link.is_some();
    let equipped = config.split().into_iter().zip(sockets).zip(sinks(workers, events));
    for (((config, sockets), events), seat) in equipped.zip(seats) {
        let mut worker = Worker::new(config, sockets, tunnel.listen_port.clone(), events);
        if is_watched {
            worker.watch_link(link.take());
        }
        // If one does not start, the others end with the handle.
        tunnel.threads.push(spawn(worker, seat).map_err(StartError::Thread)?);
    }
    Ok(tunnel)
}

/// Where a worker hears of what it is to do.
struct Seat {
    inbox: Receiver<Request>,
    wakeups: Wakeups,
    team: Option<Team>,
}

fn seats(workers: Workers) -> io::Result<(Inboxes, Vec<Seat>)> {
    let (mut inboxes, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..workers.count() {
        let ((waker, wakeups), (requests, inbox)) = (wait::pair()?, mpsc::channel());
        inboxes.push(Inbox::new(requests, waker));
        ends.push((inbox, wakeups));
    }
    let teams = match workers {
        Workers::ONE => vec![None],
        _ => Team::gather(workers, &inboxes).into_iter().map(Some).collect(),
    };
    let seats = ends.into_iter().zip(teams).map(|((inbox, wakeups), team)| Seat { inbox, wakeups, team });
    let seats = seats.collect();
    Ok((Inboxes::new(inboxes), seats))
}

/// Where others bring the interface up and down.
fn watch_link(config: &Config, inboxes: &Inboxes) -> Option<LinkWatch> {
    match config.policy {
        Policy::Owner => return None,
        Policy::WireGuard => {}
    }
    let inboxes = inboxes.clone();
    let tell = move |link| inboxes.send_all(|| Request::Link(link));
    LinkWatch::start(config.device.system(), config.device.mtu(), tell)
        .inspect_err(|error| tracing::info!(%error, "the interface cannot be watched; it is taken to be up"))
        .ok()
}

/// What each worker reports to.
fn sinks(workers: Workers, events: impl FnMut(Event) + Send + 'static) -> Vec<worker::Events> {
    if workers == Workers::ONE {
        return vec![Box::new(events)];
    }
    let shared = Arc::new(Mutex::new(events));
    let sink = |_| -> worker::Events {
        let shared = shared.clone();
        // A handler that failed is to be told of its failure.
        Box::new(move |event| (shared.lock().unwrap_or_else(PoisonError::into_inner))(event))
    };
    (0..workers.count()).map(sink).collect()
}

fn spawn(mut worker: Worker, seat: Seat) -> io::Result<JoinHandle<()>> {
    let number = seat.team.as_ref().map_or(0, |team| team.shard().number());
    if let Some(team) = seat.team {
        worker.join(team);
    }
    let name = if number == 0 { "tunnel".into() } else { format!("tunnel-{number}") };
    thread::Builder::new().name(name).spawn(move || {
        // Whatever happens, the owner hears of it: an agent without a data plane must not look alive.
        let run = AssertUnwindSafe(|| worker.run(&seat.inbox, &seat.wakeups));
        if catch_unwind(run).is_err() {
            worker.on_fault("a defect in the data plane".into());
        }
        worker.dismiss_team();
    })
}

impl Tunnel {
    /// Hands over a command; those about one peer are carried out in order. After [`Event::Fault`] or [`Event::Gone`] they
    /// have no effect.
    pub fn command(&self, command: Command) {
        match command.peer().map(|peer| shard::owner(peer, self.inboxes.count())) {
            Some(owner) => self.inboxes.of(owner).send(Request::Command(command)),
            None => self.inboxes.send_all(|| Request::Command(command.clone())),
        }
    }

    /// The UDP port in use, which [`Command::Rebind`] may change.
    pub fn listen_port(&self) -> u16 {
        self.listen_port.load(Ordering::Relaxed)
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Carries out changes: all of them, or none. Waits as [`Tunnel::stats`] does.
    pub fn configure(&self, changes: Changes) -> Result<(), ConfigureError> {
        let changes = Box::new(changes);
        let answers = self.inboxes.ask_all(|reply| Request::Configure(changes.clone(), reply));
        // What can fail is decided by the first, and the same for all.
        answers.into_iter().next().flatten().unwrap_or(Err(ConfigureError::Stopped))
    }

    /// Configuration and peers' state; `None` after a fault. Waits as [`Tunnel::stats`] does.
    pub fn describe(&self) -> Option<Description> {
        let mut parts = self.inboxes.ask_all(Request::Describe).into_iter();
        let mut whole = parts.next()??;
        for part in parts {
            let part = part?;
            whole.drops += part.drops;
            whole.peers.extend(part.peers);
        }
        Some(whole)
    }

    /// Every peer's state, in no particular order; empty after a fault. Waits for the threads, which answer between
    /// two batches: never ask from the event handler, which is on one of them.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.inboxes.ask_all(Request::Stats).into_iter().flatten().flatten().collect()
    }

    /// What was dropped since the start. Waits as [`Tunnel::stats`] does.
    pub fn drops(&self) -> Drops {
        self.counters().drops
    }

    /// What all peers carried, and what was dropped; zeros after a fault. Waits as [`Tunnel::stats`] does.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.inboxes.ask_all(Request::Counters).into_iter().flatten().for_each(|counters| sum += counters);
        sum
    }

    /// Copies what goes through the tunnel, until the capture is dropped. `sink` is called on the data plane's thread and
    /// must not block. `None`: there are [`crate::capture::MAX_CAPTURES`] already.
    pub fn capture(&self, wanted: Wanted, sink: impl Fn(Packets) + Send + Sync + 'static) -> Option<Capture> {
        let inboxes = self.inboxes.clone();
        let tidy = move || inboxes.send_all(|| Request::TidyCaptures);
        let (capture, tap) = Capture::begin(&self.captures, wanted, Arc::new(sink), tidy)?;
        self.inboxes.send_all(|| Request::Capture(tap.clone()));
        Some(capture)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.command(Command::Shutdown);
        for thread in self.threads.drain(..) {
            // A panic on the thread has been reported by the panic hook; there is nothing more to clean up.
            let _ = thread.join();
        }
    }
}
