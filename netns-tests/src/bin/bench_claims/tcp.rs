//! A program with a connection to the shared address: it sends and reads an echo in a loop, and connects again when the connection breaks.
//!
//! Beside it the same where no reset reaches the program, as the client's system drops them: what it would see if nobody sent one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netns_tests::figures::Samples;
use netns_tests::namespace::Namespace;
use netns_tests::wait::wait_until;

use crate::Bench;
use crate::holdfast::{Holdfast, SHARED, Setup};
use crate::lab::{Lab, TIMEOUT, active};
use crate::rounds::{self, Blow};
use crate::table::{Row, Target};

const PORT: u16 = 7;
const BLOCK: usize = 4096;
/// Between two blocks: a program that talks, not one that fills the line.
const PAUSE: Duration = Duration::from_millis(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A program without a timeout of its own would wait for the system's, a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);
const DROP_RESETS: &str = "table inet noresets { chain input { type filter hook input priority 0; tcp flags & rst == rst drop; }; }";

pub(crate) fn rows(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &Setup::of(2))?;
    let servers: Vec<Echoes> =
        (0..2).map(|claimer| Echoes::start(&lab.host(claimer).namespace)).collect::<Result<_>>()?;
    let bound = Target::Worst(Duration::from_secs(1));
    let mut rows = Vec::new();
    for blow in [Blow::Killed, Blow::Frozen, Blow::Cut] {
        let [broken, again] = strike(&mut lab, blow, bench.rounds.min(20))?;
        let what = format!("TCP, {}: connected again", blow.name());
        rows.push(Row::spans(
            &format!("TCP, {}: program sees it", blow.name()),
            "ours",
            broken,
            Target::None,
        ));
        rows.push(Row::spans(&what, "ours", again, bound));
    }
    lab.client().namespace.nft(DROP_RESETS)?;
    let [_, again] = strike(&mut lab, Blow::Killed, bench.rounds.min(3))?;
    let what = format!("TCP, killed: connected again ({} s is the program's patience)", PATIENCE.as_secs());
    rows.push(Row::spans(&what, "ours, resets dropped by the client", again, Target::None));
    drop(servers);
    Ok(rows)
}

/// From the fault until the program saw an error, and until it had an echo again.
fn strike(lab: &mut Holdfast, blow: Blow, rounds: usize) -> Result<[Samples; 2]> {
    let program = Program::start(&lab.client().namespace)?;
    let mut spans = [Samples::new("broken"), Samples::new("again")];
    for _ in 0..rounds {
        program.wait("has an echo", |seen| seen.echoed_at.is_some_and(|at| at.elapsed() < PAUSE * 4))?;
        let victim = active(lab)?;
        let at = rounds::strike(lab, blow, victim)?;
        let broken_at = program.wait("sees that its connection broke", |seen| {
            seen.broken_at.is_some_and(|broken| broken > at)
        })?;
        let again_at = program.wait("has an echo again", |seen| {
            seen.connected_at.is_some_and(|connected| connected > at) && seen.echoed_at > seen.connected_at
        })?;
        spans[0].push(broken_at.broken_at.context("it broke")?.saturating_duration_since(at));
        spans[1].push(again_at.echoed_at.context("it echoed")?.saturating_duration_since(at));
        rounds::heal(lab, blow, victim)?;
        lab.wait_ready(victim)?;
    }
    Ok(spans)
}

/// What the program saw last.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    connected_at: Option<Instant>,
    /// The first echo after that, then each.
    echoed_at: Option<Instant>,
    broken_at: Option<Instant>,
}

struct Program {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    fn start(namespace: &Namespace) -> Result<Self> {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (namespace, into, until) = (namespace.clone(), Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            if namespace.enter().is_err() {
                return;
            }
            while !until.load(Ordering::Relaxed) {
                // Whatever breaks it, it connects again at once.
                talk(&into, &until).ok();
            }
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Returns what was seen when it held; the first echo after a connection is looked at within milliseconds.
    fn wait(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> Result<Seen> {
        wait_until(&format!("the program {what}"), TIMEOUT, || {
            let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(holds(&seen).then_some(seen))
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn talk(seen: &Mutex<Seen>, stop: &AtomicBool) -> Result<()> {
    let note = |change: &dyn Fn(&mut Seen)| change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let address = SocketAddr::from((SHARED, PORT));
    let mut connection =
        TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).inspect_err(|_| std::thread::sleep(PAUSE))?;
    note(&|seen| seen.connected_at = Some(Instant::now()));
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(LOOK))?;
    let mut echo = || -> Result<()> {
        connection.write_all(&[7; BLOCK])?;
        read_whole(&mut connection, stop)
    };
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = echo() {
            note(&|seen| seen.broken_at = Some(Instant::now()));
            return Err(error);
        }
        note(&|seen| seen.echoed_at = Some(Instant::now()));
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn read_whole(connection: &mut TcpStream, stop: &AtomicBool) -> Result<()> {
    let (mut buffer, mut read, begun) = ([0; BLOCK], 0, Instant::now());
    while read < BLOCK {
        match connection.read(&mut buffer[read..]) {
            Ok(0) => bail!("the other side ended the connection"),
            Ok(more) => read += more,
            Err(error) if is_time_out(&error) => {
                if begun.elapsed() > PATIENCE || stop.load(Ordering::Relaxed) {
                    bail!("nothing came");
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_time_out(error: &std::io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
}

/// A server of echoes on a machine that claims, which outlives the machine's agent.
pub(crate) struct Echoes {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echoes {
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                while !until.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((connection, _)) => drop(scope.spawn(|| serve(connection, &until))),
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn serve(mut connection: TcpStream, stop: &AtomicBool) {
    let ready = connection.set_nonblocking(false).and_then(|()| connection.set_read_timeout(Some(LOOK)));
    let mut buffer = [0; BLOCK];
    while ready.is_ok() && !stop.load(Ordering::Relaxed) {
        match connection.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if connection.write_all(&buffer[..length]).is_err() => return,
            Ok(_) => {}
            Err(error) if is_time_out(&error) => {}
            Err(_) => return,
        }
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
