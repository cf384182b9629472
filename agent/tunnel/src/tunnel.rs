//! The handle on a running data plane: what its owner holds while the thread works.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
        mpsc::{self, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
};

use crate::{
    Command, Config, Counters, Drops, Event, PeerStats, Policy,
    capture::{Capture, Packets, Tap, Wanted},
    device::{Link, LinkWatch},
    socket::Sockets,
    uapi::{Changes, Description},
    wait::{self, Waker},
    worker::Worker,
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

/// A running data plane. Dropping it stops the thread, closes the sockets and removes the interface.
#[derive(Debug)]
pub struct Tunnel {
    requests: Sender<Request>,
    waker: Waker,
    listen_port: Arc<AtomicU16>,
    interface: String,
    /// How many are running.
    captures: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// Opens the sockets (in the caller's network namespace) and starts the thread. `events` is called on that thread
/// and must not block.
pub fn start(config: Config, events: impl FnMut(Event) + Send + 'static) -> Result<Tunnel, StartError> {
    let sockets = Sockets::open(config.listen_port, config.fwmark)?;
    let listen_port = Arc::new(AtomicU16::new(sockets.port()));
    let (waker, wakeups) = wait::pair().map_err(StartError::Thread)?;
    let (requests, inbox) = mpsc::channel();
    let interface = config.device.name().to_owned();
    let link = (config.policy == Policy::WireGuard).then(|| {
        let (requests, waker): (Sender<Request>, _) = (requests.clone(), waker.clone());
        LinkWatch::start(config.device.system(), config.device.mtu(), move |link| {
            if requests.send(Request::Link(link)).is_ok() {
                waker.wake();
            }
        })
    });
    let mut worker = Worker::new(config, sockets, listen_port.clone(), Box::new(events));
    match link.transpose() {
        Ok(watch) => watch.into_iter().for_each(|watch| worker.watch_link(watch)),
        Err(error) => tracing::info!(%error, "the interface cannot be watched; it is taken to be up"),
    }
    let thread = thread::Builder::new()
        .name("tunnel".into())
        .spawn(move || {
            // Whatever happens, the owner hears of it: an agent without a data plane must not look alive.
            let run = AssertUnwindSafe(|| worker.run(&inbox, &wakeups));
            if catch_unwind(run).is_err() {
                worker.on_fault("a defect in the data plane".into());
            }
        })
        .map_err(StartError::Thread)?;
    Ok(Tunnel { requests, waker, listen_port, interface, captures: Arc::default(), thread: Some(thread) })
}

impl Tunnel {
    /// Hands over a command; they are carried out in order. After [`Event::Fault`] or [`Event::Gone`] they have no effect.
    pub fn command(&self, command: Command) {
        self.request(Request::Command(command));
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
        let (reply, answer) = mpsc::sync_channel(1);
        self.request(Request::Configure(Box::new(changes), reply));
        answer.recv().unwrap_or(Err(ConfigureError::Stopped))
    }

    /// Configuration and peers' state; `None` after a fault. Waits as [`Tunnel::stats`] does.
    pub fn describe(&self) -> Option<Description> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.request(Request::Describe(reply));
        answer.recv().ok()
    }

    /// Every peer's state, in no particular order; empty after a fault. Waits for the thread, which answers between
    /// two batches: never ask from the event handler, which is that thread.
    pub fn stats(&self) -> Vec<PeerStats> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.request(Request::Stats(reply));
        answer.recv().unwrap_or_default()
    }

    /// What was dropped since the start. Waits as [`Tunnel::stats`] does.
    pub fn drops(&self) -> Drops {
        self.counters().drops
    }

    /// What all peers carried, and what was dropped; zeros after a fault. Waits as [`Tunnel::stats`] does.
    pub fn counters(&self) -> Counters {
        let (reply, answer) = mpsc::sync_channel(1);
        self.request(Request::Counters(reply));
        answer.recv().unwrap_or_default()
    }

    /// Copies what goes through the tunnel, until the capture is dropped. `sink` is called on the data plane's thread and
    /// must not block. `None`: there are [`crate::capture::MAX_CAPTURES`] already.
    pub fn capture(&self, wanted: Wanted, sink: impl Fn(Packets) + Send + Sync + 'static) -> Option<Capture> {
        let (requests, waker) = (self.requests.clone(), self.waker.clone());
        let tidy = move || {
            if requests.send(Request::TidyCaptures).is_ok() {
                waker.wake();
            }
        };
        let (capture, tap) = Capture::begin(&self.captures, wanted, Arc::new(sink), tidy)?;
        self.request(Request::Capture(tap));
        Some(capture)
    }

    fn request(&self, request: Request) {
        if self.requests.send(request).is_ok() {
            self.waker.wake();
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.command(Command::Shutdown);
        if let Some(thread) = self.thread.take() {
            // A panic on the thread has been reported by the panic hook; there is nothing more to clean up.
            let _ = thread.join();
        }
    }
}
