//! What pairs are put through. A course ends at the first thing that is wrong.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netns_tests::figures::ms;
use netns_tests::ping::Pinger;
use netns_tests::topology::Fault;
use netns_tests::wait::{hold_for, wait_until};

use crate::end::End;
use crate::wire::{Message, Wire};

/// A first packet may meet a host that is still looking for its neighbour, and handshakes are repeated after 5 s.
const FIRST_PATIENCE: Duration = Duration::from_secs(40);
/// After a restart that only one side knows of, the other notices after 15 s of silence, and then makes a handshake.
const NOTICE_PATIENCE: Duration = Duration::from_secs(45);
/// Handshakes with a loss of a tenth each way: six attempts in a row fail once in ten thousand.
const LOSSY_PATIENCE: Duration = Duration::from_secs(60);
/// WireGuard renews a session that carries data after 120 s.
const REKEY_PATIENCE: Duration = Duration::from_secs(140);
/// Earlier it is renewed for other reasons: a packet that was not answered, on a machine that stood still.
const REKEY_AFTER: Duration = Duration::from_secs(110);
/// Of the new session's first packets.
const AFTER_REKEY: Duration = Duration::from_secs(3);
/// Longer than any session lives.
const SILENCE: Duration = Duration::from_secs(185);
/// boringtun-cli renews a session once for data of before, at 120 s; then it has to age again.
const SILENCE_PATIENCE: Duration = Duration::from_secs(320);
/// A session that is kept up is renewed at 120 s.
const YOUNG: Duration = Duration::from_secs(125);
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const LOSS_IN_THOUSAND: u16 = 100;
const LOSSY_HANDSHAKES: u32 = 4;
const BULK_PORT: u16 = 7777;

/// Which way a pair goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Bulk, pings across a renewal, restarts, roaming, loss.
    Busy,
    /// Traffic after a silence that is longer than a session.
    Silent,
    /// As long a silence with a persistent keepalive of 25 s.
    Kept,
}

/// Ours, another, and how hard they may be worked.
pub(crate) struct Pair {
    pub(crate) ours: End,
    pub(crate) theirs: End,
    /// They renew a session that is kept up by keepalives alone.
    pub(crate) renews_when_idle: bool,
    pub(crate) bulk_bytes: usize,
    pub(crate) ping_interval: Duration,
}

/// What was shown, in the order it was.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) notes: Vec<String>,
    pub(crate) lost: usize,
    pub(crate) sent: usize,
    pub(crate) rekeys: u32,
}

impl Shown {
    fn note(&mut self, text: impl Display) {
        self.notes.push(text.to_string());
    }
}

impl Pair {
    /// What fails is told with all handshakes that were seen.
    pub(crate) fn run(&mut self, course: Course, shown: &mut Shown) -> Result<()> {
        let ends = [self.ours.place.outer, self.theirs.place.outer];
        let wire = Wire::watch(self.ours.host().context("ours is a host")?, ends)?;
        let result = self.follow(course, shown, &wire);
        result.map_err(|error| anyhow!("{error:#} (handshakes: {wire})"))
    }

    fn follow(&mut self, course: Course, shown: &mut Shown, wire: &Wire) -> Result<()> {
        self.ours.start(&self.theirs)?;
        self.theirs.start(&self.ours)?;
        let (_, took) = self.speaker().reach(self.listener(), FIRST_PATIENCE).context("at the beginning")?;
        shown.note(format!("first answer {}", ms(took)));
        // boringtun-cli tells its age there, not its time.
        ensure!(self.ours.handshake()? != 0, "`wg show` of {} shows no handshake", self.ours.name);
        self.listener().reach(self.speaker(), FIRST_PATIENCE)?;
        match course {
            Course::Busy => self.be_busy(shown, wire)?,
            Course::Silent => self.be_silent(shown, wire)?,
            Course::Kept => self.be_kept_up(shown, wire)?,
        }
        self.ours.judge()?;
        self.theirs.judge()
    }

    /// Who begins, and knows where the other is.
    fn speaker(&self) -> &End {
        if self.ours.begins() { &self.ours } else { &self.theirs }
    }

    fn listener(&self) -> &End {
        if self.ours.begins() { &self.theirs } else { &self.ours }
    }

    fn be_busy(&mut self, shown: &mut Shown, wire: &Wire) -> Result<()> {
        self.exchange_bulk(shown).context("bulk")?;
        self.ping_across_a_rekey(shown, wire).context("rekey")?;
        for ours in [true, false] {
            self.restart(ours, shown).with_context(|| format!("restart of {}", side(ours)))?;
        }
        for ours in [true, false] {
            self.roam(ours, shown).with_context(|| format!("roaming of {}", side(ours)))?;
        }
        self.shake_hands_with_loss(shown).context("handshakes with loss")
    }

    fn exchange_bulk(&self, shown: &mut Shown) -> Result<()> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("a path that is text")?;
        let bytes = self.bulk_bytes.to_string();
        let to = format!("{}:{BULK_PORT}", self.listener().inner_address());
        let begun = Instant::now();
        let (speaking, listening) = std::thread::scope(|scope| {
            let listener = scope.spawn(|| self.listener().output(program, &["bulk", "listen", &to, &bytes]));
            let speaking = self.speaker().output(program, &["bulk", "connect", &to, &bytes]);
            (speaking, listener.join())
        });
        // Why the listener ended is often why the speaker found nobody.
        listening.map_err(|_| anyhow!("the listening thread panicked"))?.context("who listens")?;
        speaking.context("who connects")?;
        shown.note(format!("{} MB each way as sent in {}", self.bulk_bytes >> 20, ms(begun.elapsed())));
        Ok(())
    }

    fn ping_across_a_rekey(&self, shown: &mut Shown, wire: &Wire) -> Result<()> {
        let host = self.ours.host().context("ours is a host")?;
        let target = self.theirs.inner_address().parse()?;
        let pinger = Pinger::start(self.ours.name.as_str(), &host.namespace, target, self.ping_interval)?;
        let renewed = wait_renewed(wire, shown);
        hold_for(AFTER_REKEY, || Ok(()))?;
        let report = pinger.finish()?;
        (shown.lost, shown.sent) = (report.lost(), report.sent());
        // Who answers did not begin.
        let by = side(!renewed?.is_ours);
        shown.note(format!("rekey by {by}, longest gap {}", ms(report.longest_gap())));
        let when = report.losses_since(report.echoes.first().context("no ping was sent")?.sent_at);
        ensure!(report.lost() == 0, "{} of {} pings lost, after {when:?}", report.lost(), report.sent());
        Ok(())
    }

    /// One side forgets everything but its configuration; then both reach each other, the speaker first.
    fn restart(&mut self, ours: bool, shown: &mut Shown) -> Result<()> {
        if ours {
            self.ours.start(&self.theirs)?
        } else {
            self.theirs.start(&self.ours)?
        }
        let (_, took) = self.speaker().reach(self.listener(), NOTICE_PATIENCE)?;
        self.listener().reach(self.speaker(), FIRST_PATIENCE)?;
        shown.note(format!("{} restarted: {}", side(ours), ms(took)));
        Ok(())
    }

    /// One side has another address, and says something: the other follows.
    fn roam(&mut self, ours: bool, shown: &mut Shown) -> Result<()> {
        let begun = Instant::now();
        if ours {
            self.ours.roam()?
        } else {
            self.theirs.roam()?
        }
        let (gone, stayed) = if ours { (&self.ours, &self.theirs) } else { (&self.theirs, &self.ours) };
        gone.reach(stayed, FIRST_PATIENCE)?;
        stayed.wait_follows(gone)?;
        stayed.reach(gone, FIRST_PATIENCE)?;
        shown.note(format!("{} roamed: {}", side(ours), ms(begun.elapsed())));
        Ok(())
    }

    /// Again and again from nothing, while one in ten packets is lost each way.
    fn shake_hands_with_loss(&mut self, shown: &mut Shown) -> Result<()> {
        self.ours.place.port.fault(Fault::Loss(LOSS_IN_THOUSAND))?;
        let mut slowest = Duration::ZERO;
        for _ in 0..LOSSY_HANDSHAKES {
            if self.ours.begins() {
                self.ours.start(&self.theirs)?
            } else {
                self.theirs.start(&self.ours)?
            }
            slowest = slowest.max(self.speaker().reach(self.listener(), LOSSY_PATIENCE)?.1);
        }
        self.ours.place.port.mend()?;
        shown.note(format!("{LOSSY_HANDSHAKES} handshakes with 10 % loss: {} at most", ms(slowest)));
        Ok(())
    }

    /// The first packet after it waits for a handshake, and arrives.
    fn be_silent(&self, shown: &mut Shown, wire: &Wire) -> Result<()> {
        let mut last = wire.last()?;
        wait_until("nobody renews a session that nobody uses", SILENCE_PATIENCE, || {
            hold_for(LOOK_INTERVAL, || Ok(()))?;
            let newest = wire.last()?;
            if newest != last {
                let age = newest.seen_at - last.seen_at;
                shown.note(format!("a renewal in silence by {}, after {}", side(!newest.is_ours), ms(age)));
                shown.rekeys += 1;
                last = newest;
            }
            Ok((last.seen_at.elapsed() >= SILENCE).then_some(()))
        })?;
        let (sent, took) = self.speaker().reach(self.listener(), FIRST_PATIENCE)?;
        shown.sent = 1;
        ensure!(sent == 1, "{sent} packets were sent until one was answered");
        ensure!(wire.last()? != last, "there was no new handshake");
        shown.rekeys += 1;
        shown.note(format!("after {} s of silence: {}", SILENCE.as_secs(), ms(took)));
        Ok(())
    }

    /// There still is a session, for whoever needs it, and a young one.
    fn be_kept_up(&self, shown: &mut Shown, wire: &Wire) -> Result<()> {
        let first = wire.last()?;
        hold_for(SILENCE, || Ok(()))?;
        let last = wire.last()?;
        if self.renews_when_idle || self.ours.begins() {
            let age = last.seen_at.elapsed();
            ensure!(last != first && age < YOUNG, "the session was not renewed for {}", ms(age));
        } else {
            shown.note("they renew for data only");
        }
        let (sent, took) = self.listener().reach(self.speaker(), FIRST_PATIENCE)?;
        shown.sent = 1;
        ensure!(sent == 1, "{sent} packets were sent until one was answered");
        shown.rekeys += u32::from(last != first);
        shown.note(format!("after {} s of keepalives: {}", SILENCE.as_secs(), ms(took)));
        Ok(())
    }
}

/// When a session becomes another because it is old: the answer that makes it.
fn wait_renewed(wire: &Wire, shown: &mut Shown) -> Result<Message> {
    let mut last = wire.last()?;
    wait_until("the session is renewed", 2 * REKEY_PATIENCE, || {
        hold_for(LOOK_INTERVAL, || Ok(()))?;
        let newest = wire.last()?;
        let age = last.seen_at.elapsed();
        ensure!(newest != last || age < REKEY_PATIENCE, "the session was not renewed for {}", ms(age));
        if newest == last {
            return Ok(None);
        }
        let age = newest.seen_at - last.seen_at;
        last = newest;
        shown.rekeys += 1;
        if age < REKEY_AFTER {
            shown.note(format!("a renewal before its time by {}, after {}", side(!newest.is_ours), ms(age)));
            return Ok(None);
        }
        Ok(Some(newest))
    })
}

fn side(ours: bool) -> &'static str {
    if ours { "ours" } else { "theirs" }
}
