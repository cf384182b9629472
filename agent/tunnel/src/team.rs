//! What one of several workers knows of the others, and how it reaches them.
//!
//! Workers share nothing that a packet needs. What comes to one and belongs to another is handed over through a bounded
//! channel: initiations, which are admitted in one place; a packet or datagram that the kernel gave to the wrong one. New
//! sockets are made for all at once, as the kernel numbers them in the order in which they are bound.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use crate::{
    Command, PublicKey, StartError,
    device::{Parcel, Reader},
    inbox::Inbox,
    initiation::{self, Sender as InitiationSender},
    load::Spent,
    noise::{Cookies, Identity},
    passed::PassedOn,
    shard::{Shard, Workers},
    socket::{Ecn, Path, Sockets},
    tunnel::Request,
};

/// Per worker.
const MAX_HANDED: usize = 4096;
/// When so many bytes of packets wait for a worker, no more is read from the interface for anybody, as it is when a worker alone has too
/// much to do: the kernel keeps packets, and slows TCP down.
const MAX_QUEUED: usize = 1 << 20;
/// More bytes of datagrams are dropped. Anybody can send these: they must neither hold packets up nor take the room of
/// initiations that were admitted.
const MAX_DATAGRAMS: usize = 2 << 20;
/// What each thing handed over counts besides its bytes.
const COST: usize = 1024;
const NOBODY: usize = usize::MAX;

/// What one worker hands over to another, whose it is.
pub(crate) enum Handed {
    Datagram {
        path: Path,
        ecn: Option<Ecn>,
        bytes: Box<[u8]>,
    },
    /// Admitted, and its sender is a peer.
    Initiation {
        path: Path,
        sender: InitiationSender,
        bytes: Box<[u8; initiation::LEN]>,
    },
    Packets(Parcel),
}

impl Handed {
    fn cost(&self) -> usize {
        COST + match self {
            Self::Datagram { bytes, .. } => bytes.len(),
            Self::Initiation { bytes, .. } => bytes.len(),
            Self::Packets(parcel) => parcel.len(),
        }
    }
}

/// What waits for a worker, in bytes.
#[derive(Default)]
struct Backlog {
    packets: AtomicUsize,
    datagrams: AtomicUsize,
}

impl Backlog {
    /// Where it counts.
    fn of(&self, handed: &Handed) -> Option<&AtomicUsize> {
        match handed {
            Handed::Datagram { .. } => Some(&self.datagrams),
            Handed::Initiation { .. } => None,
            Handed::Packets(_) => Some(&self.packets),
        }
    }

    fn has_room(&self, handed: &Handed) -> bool {
        match handed {
            Handed::Datagram { .. } => {
                self.datagrams.load(Ordering::Relaxed) + handed.cost() <= MAX_DATAGRAMS
            }
            Handed::Initiation { .. } | Handed::Packets(_) => true,
        }
    }
}

#[derive(Clone)]
struct Sibling {
    backlog: Arc<Backlog>,
    handed: SyncSender<Handed>,
    inbox: Inbox,
    is_to_wake: bool,
}

/// One worker's place among the others.
pub(crate) struct Team {
    shard: Shard,
    /// By number; none in its own place.
    siblings: Vec<Option<Sibling>>,
    handed: Receiver<Handed>,
    backlog: Arc<Backlog>,
    meeting: Meeting,
    shared: Arc<Shared>,
    handed_over: u64,
    pub(crate) passed_on: PassedOn,
    /// The kernel did not take every prefix.
    pub(crate) lacks_prefixes: bool,
    /// Packets of others are lost at present.
    pub(crate) loses: bool,
    /// Holds packets that were handed over while they are sent.
    pub(crate) reader: Option<Reader>,
}

/// What all workers of a tunnel have in common.
struct Shared {
    began_at: Instant,
    /// Time spent on handshakes that was not yet counted by the one who admits them.
    handshakes: Spent,
    /// Who reports why the tunnel ended.
    reporter: AtomicUsize,
    /// Of the present key.
    cookies: Mutex<Option<(PublicKey, Cookies)>>,
}

impl Team {
    /// A place for each worker, in order. `inboxes` are theirs.
    pub(crate) fn gather(workers: Workers, inboxes: &[Inbox]) -> Vec<Self> {
        let shared = Arc::new(Shared {
            began_at: Instant::now(),
            handshakes: Spent::default(),
            reporter: AtomicUsize::new(NOBODY),
            cookies: Mutex::default(),
        });
        let (doors, receivers): (Vec<_>, Vec<_>) = inboxes
            .iter()
            .map(|inbox| {
                let (handed, receiver) = sync_channel(MAX_HANDED);
                let door =
                    Sibling { backlog: Arc::default(), handed, inbox: inbox.clone(), is_to_wake: false };
                (door, receiver)
            })
            .unzip();
        let places = Shard::all(workers).zip(receivers).zip(Meeting::places(workers));
        let team = places.map(|((shard, handed), meeting)| {
            let own = shard.number();
            let siblings = doors
                .iter()
                .enumerate()
                .map(|(number, door)| (number != own).then(|| door.clone()))
                .collect();
            Self {
                shard,
                siblings,
                handed,
                backlog: doors[own].backlog.clone(),
                meeting,
                shared: shared.clone(),
                handed_over: 0,
                passed_on: PassedOn::default(),
                lacks_prefixes: false,
                loses: false,
                reader: None,
            }
        });
        team.collect()
    }

    /// Packets and datagrams, not initiations, which always are.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over
    }

    pub(crate) fn shard(&self) -> Shard {
        self.shard
    }

    /// Hands something over; `false` if the other has too much to do, or is gone. It is woken by [`Team::wake`].
    pub(crate) fn hand_over(&mut self, to: usize, what: Handed) -> bool {
        let counted = match what {
            Handed::Datagram { .. } | Handed::Packets(_) => 1,
            Handed::Initiation { .. } => 0,
        };
        let Some(sibling) = self.siblings.get_mut(to).and_then(Option::as_mut) else { return false };
        sibling.is_to_wake = true;
        let (backlog, cost) = (&sibling.backlog, what.cost());
        if !backlog.has_room(&what) {
            return false;
        }
        if let Some(bytes) = backlog.of(&what) {
            bytes.fetch_add(cost, Ordering::Release);
        }
        match sibling.handed.try_send(what) {
            Ok(()) => {
                self.handed_over += counted;
                true
            }
            Err(TrySendError::Full(what) | TrySendError::Disconnected(what)) => {
                if let Some(bytes) = backlog.of(&what) {
                    bytes.fetch_sub(cost, Ordering::Relaxed);
                }
                false
            }
        }
    }

    /// Wakes those who were handed something since.
    pub(crate) fn wake(&mut self) {
        for sibling in self.siblings.iter_mut().flatten() {
            if std::mem::take(&mut sibling.is_to_wake) {
                sibling.inbox.wake();
            }
        }
    }

    /// What the others have handed over.
    pub(crate) fn next(&self) -> Option<Handed> {
        let next = self.handed.try_recv().ok()?;
        if let Some(bytes) = self.backlog.of(&next) {
            bytes.fetch_sub(next.cost(), Ordering::Relaxed);
        }
        Some(next)
    }

    /// Whether packets wait here.
    pub(crate) fn has_packets(&self) -> bool {
        self.backlog.packets.load(Ordering::Acquire) > 0
    }

    /// Whether another has so much to do that nothing more should be read.
    pub(crate) fn is_held_up(&self) -> bool {
        let packets = |sibling: &Sibling| sibling.backlog.packets.load(Ordering::Relaxed);
        self.siblings.iter().flatten().any(|sibling| packets(sibling) > MAX_QUEUED)
    }

    /// Handshakes were worked on for so long; all count where they are admitted.
    pub(crate) fn spend(&self, time: Duration, now: Instant) {
        self.shared.handshakes.add(time, self.second(now));
    }

    /// What the others have spent lately, to be counted by who admits.
    pub(crate) fn take_spent(&self, now: Instant) -> Duration {
        self.shared.handshakes.take(self.second(now))
    }

    fn second(&self, now: Instant) -> u32 {
        // It wraps after a century.
        now.saturating_duration_since(self.shared.began_at).as_secs() as u32
    }

    pub(crate) fn others(&self) -> u32 {
        self.siblings.iter().flatten().count() as u32
    }

    /// Whether this is the one who admits initiations.
    pub(crate) fn is_first(&self) -> bool {
        self.shard.number() == 0
    }

    /// Whether it is this worker's to say why the tunnel ended.
    pub(crate) fn is_to_report(&self) -> bool {
        let own = self.shard.number();
        let reporter = &self.shared.reporter;
        let seized = reporter.compare_exchange(NOBODY, own, Ordering::Relaxed, Ordering::Relaxed);
        seized.map_or_else(|reporter| reporter == own, |_| true)
    }

    /// Makes a cookie that one worker asked for count with all. `own` is the node's key.
    pub(crate) fn share_cookies(&self, own: PublicKey, identity: &mut Identity) {
        let mut shared = self.shared.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some((key, cookies)) if *key == own => identity.share_cookies(cookies.clone()),
            Some(_) | None => *shared = Some((own, identity.cookies().clone())),
        }
    }

    /// One has ended: all do.
    pub(crate) fn dismiss(&self) {
        for sibling in self.siblings.iter().flatten() {
            sibling.inbox.send(Request::Command(Command::Shutdown));
        }
    }

    /// Waits until every worker has come here, lets the first make sockets for all, and gives each its own. `None` if the first
    /// failed, which tells why, or is gone.
    pub(crate) fn renew_sockets(
        &self,
        make: impl FnOnce(Workers) -> Result<Vec<Sockets>, StartError>,
    ) -> Result<Option<Sockets>, StartError> {
        self.meeting.hold(make)
    }
}

/// Where workers meet. All are sent there by the same request, so nobody waits for long.
enum Meeting {
    Leader { workers: Workers, arrivals: Vec<Receiver<()>>, seats: Vec<Sender<Option<Sockets>>> },
    Member { arrival: Sender<()>, seat: Receiver<Option<Sockets>> },
}

impl Meeting {
    fn places(workers: Workers) -> Vec<Self> {
        let (mut arrivals, mut seats, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 1..workers.count() {
            let (arrival, arrived) = std::sync::mpsc::channel();
            let (seat, seated) = std::sync::mpsc::channel();
            arrivals.push(arrived);
            seats.push(seat);
            places.push(Self::Member { arrival, seat: seated });
        }
        places.insert(0, Self::Leader { workers, arrivals, seats });
        places
    }

    fn hold(
        &self,
        make: impl FnOnce(Workers) -> Result<Vec<Sockets>, StartError>,
    ) -> Result<Option<Sockets>, StartError> {
        match self {
            Self::Member { arrival, seat } => {
                // A leader that is gone gives no seat.
                let _ = arrival.send(());
                Ok(seat.recv().ok().flatten())
            }
            Self::Leader { workers, arrivals, seats } => {
                // Whoever is gone has no sockets any more, and needs none.
                for arrival in arrivals {
                    let _ = arrival.recv();
                }
                let made = make(*workers);
                let (result, mut rest) = match made {
                    Ok(all) => {
                        let mut all = all.into_iter();
                        (Ok(all.next()), all)
                    }
                    Err(error) => (Err(error), Vec::new().into_iter()),
                };
                seats.iter().for_each(|seat| drop(seat.send(rest.next())));
                result
            }
        }
    }
}
