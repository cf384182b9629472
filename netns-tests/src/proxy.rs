//! What lies between servers and their database, and can be worse than a cable: a proxy for TCP on a host of its own, that is slow, holds
//! back, ends connections, changes its mind about where the database is, and loses notifications.
//!
//! ```text
//!   servers ── 192.0.2.6:5432 proxy ── database
//! ```
//!
//! Its own kernel acknowledges what it holds back: to both sides the connection looks alive and nobody answers.

mod wire;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::topology::Host;

const PORT: u16 = 5432;
/// Chunks under way in one direction of one connection.
const QUEUE: usize = 256;
const CHUNK_BYTES: usize = 16 * 1024;

/// What the proxy does to what passes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Where the database is.
    pub target: SocketAddr,
    /// Each chunk towards the database waits for so long: a round trip takes that much more.
    pub delay: Duration,
    /// Nothing passes in this direction, on these connections.
    pub holds: Option<(Direction, Whose)>,
    /// New connections are ended at once.
    pub refuses: bool,
    /// Notifications do not pass; all else does.
    pub loses_notifications: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToDatabase,
    FromDatabase,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Everybody,
    /// Connections that have said LISTEN.
    Listeners,
}

/// A running proxy. Dropped, it ends its connections.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    manner: watch::Sender<Manner>,
    connections: Mutex<BTreeMap<u64, Connection>>,
}

struct Connection {
    task: AbortHandle,
    listens: watch::Sender<bool>,
}

impl Proxy {
    /// Starts one on `host`, to be reached at `address`, in front of `target`.
    pub fn start(host: &Host, address: Ipv4Addr, target: SocketAddr) -> Result<Self> {
        let manner =
            Manner { target, delay: Duration::ZERO, holds: None, refuses: false, loses_notifications: false };
        let shared = Arc::new(Shared { manner: watch::Sender::new(manner), connections: Mutex::default() });
        let address = SocketAddr::from((address, PORT));
        let (end, ended) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let (namespace, into) = (host.namespace.clone(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let entered = namespace
                .enter()
                .and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
            match entered {
                Ok(runtime) => runtime.block_on(serve(address, into, ready, ended)),
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        listening.recv().map_err(|_| anyhow!("the proxy's thread ended"))??;
        Ok(Self { address, shared, end: Some(end), thread: Some(thread) })
    }

    /// Changes the manner, for connections that are there as for new ones.
    pub fn set(&self, change: impl FnOnce(&mut Manner)) {
        self.shared.manner.send_modify(change);
    }

    /// New connections go to `target`; those to the former are ended.
    pub fn turn_to(&self, target: SocketAddr) {
        self.set(|manner| manner.target = target);
        self.end_all();
    }

    /// How many connections there are.
    pub fn count(&self) -> usize {
        self.shared.lock().len()
    }

    /// How many of them listen for notifications.
    pub fn listeners(&self) -> usize {
        self.shared.lock().values().filter(|connection| *connection.listens.borrow()).count()
    }

    /// Resets one connection: the `choice`th, counted round. Returns whether there was any.
    pub fn end_one(&self, choice: usize) -> bool {
        let mut connections = self.shared.lock();
        let number = match connections.len() {
            0 => return false,
            count => connections.keys().nth(choice % count).copied(),
        };
        let connection = number.and_then(|number| connections.remove(&number));
        connection.map(|connection| connection.task.abort()).is_some()
    }

    /// Resets every connection.
    pub fn end_all(&self) {
        let connections = std::mem::take(&mut *self.shared.lock());
        connections.into_values().for_each(|connection| connection.task.abort());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The thread waits for exactly this; gone already is as good.
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Ready = std::sync::mpsc::Sender<Result<()>>;

async fn serve(address: SocketAddr, shared: Arc<Shared>, ready: Ready, ended: oneshot::Receiver<()>) {
    let listener = match TcpListener::bind(address).await.context("the proxy cannot listen") {
        Ok(listener) => listener,
        Err(error) => return drop(ready.send(Err(error))),
    };
    ready.send(Ok(())).ok();
    let accepting = async {
        for number in 0.. {
            match listener.accept().await {
                Ok((client, _)) => admit(number, client, &shared),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    futures_util::future::select(std::pin::pin!(accepting), ended).await;
}

/// Runs a connection as a task, unless connections are refused.
fn admit(number: u64, client: TcpStream, shared: &Arc<Shared>) {
    // Ended means reset: that is what a killed database does to whoever waits for it.
    client.set_zero_linger().ok();
    if shared.manner.borrow().refuses {
        return;
    }
    let listens = watch::Sender::new(false);
    let (into, listening) = (Arc::clone(shared), listens.clone());
    let mut connections = shared.lock();
    let task = tokio::spawn(async move {
        pass(client, &into, &listening).await.ok();
        into.lock().remove(&number);
    });
    connections.insert(number, Connection { task: task.abort_handle(), listens });
}

async fn pass(client: TcpStream, shared: &Shared, listens: &watch::Sender<bool>) -> std::io::Result<()> {
    let target = shared.manner.borrow().target;
    let database = TcpStream::connect(target).await?;
    database.set_zero_linger()?;
    database.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_database, to_database) = database.into_split();
    let requests = Pump { direction: Direction::ToDatabase, shared, listens };
    let answers = Pump { direction: Direction::FromDatabase, shared, listens };
    let requests = requests.run(from_client, to_database);
    let answers = answers.run(from_database, to_client);
    // Either side's end is the end of both.
    futures_util::future::select(std::pin::pin!(requests), std::pin::pin!(answers)).await;
    Ok(())
}

/// One direction of a connection.
struct Pump<'a> {
    direction: Direction,
    shared: &'a Shared,
    listens: &'a watch::Sender<bool>,
}

impl Pump<'_> {
    async fn run(&self, from: OwnedReadHalf, to: OwnedWriteHalf) -> std::io::Result<()> {
        let (into, chunks) = mpsc::channel(QUEUE);
        let (reading, writing) = (self.read(from, into), self.write(chunks, to));
        let (read, written) = futures_util::future::join(reading, writing).await;
        read.and(written)
    }

    async fn read(
        &self,
        mut from: OwnedReadHalf,
        into: mpsc::Sender<(Instant, Vec<u8>)>,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut answers = wire::Answers::default();
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let (mut chunk, mut delay) = (buffer[..length].to_vec(), Duration::ZERO);
            match self.direction {
                Direction::ToDatabase | Direction::Both => {
                    delay = self.shared.manner.borrow().delay;
                    self.listens.send_if_modified(|listens| {
                        let began = !*listens && wire::says_listen(&chunk);
                        *listens |= began;
                        began
                    });
                }
                Direction::FromDatabase => {
                    chunk = answers.pass(&chunk, self.shared.manner.borrow().loses_notifications);
                }
            }
            if into.send((Instant::now() + delay, chunk)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn write(
        &self,
        mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
        mut to: OwnedWriteHalf,
    ) -> std::io::Result<()> {
        let (mut manner, mut listens) = (self.shared.manner.subscribe(), self.listens.subscribe());
        while let Some((due, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due.into()).await;
            while self.is_held(&manner.borrow_and_update(), *listens.borrow_and_update()) {
                let changed = (manner.changed(), listens.changed());
                futures_util::future::select(std::pin::pin!(changed.0), std::pin::pin!(changed.1)).await;
            }
            to.write_all(&chunk).await?;
        }
        Ok(())
    }

    fn is_held(&self, manner: &Manner, listens: bool) -> bool {
        manner.holds.is_some_and(|(direction, whose)| {
            let is_this_way = direction == self.direction || direction == Direction::Both;
            is_this_way && (listens || whose == Whose::Everybody)
        })
    }
}
