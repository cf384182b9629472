//! Peers whose silence the owner wants to hear of at once, not after WireGuard's 15 s: those that serve what several could. A hub may watch a thousand.
//!
//! A live peer carries a [`Mark`], which is all that a packet looks at. The first data that is unanswered sets a deadline, which answers do not move: when it comes, it is seen what is unanswered by
//! then. So a busy peer is looked at once per silence, and one without data never.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::peer::{Live, PeerId};

/// How a live peer is watched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It is not.
    #[default]
    Off,
    /// Nothing is unanswered, as far as is known.
    Calm,
    /// It has a deadline.
    Due,
    /// Its silence was told.
    Silent,
}

struct Watched {
    /// Data may be unanswered for so long.
    silence: Duration,
    due_at: Option<Instant>,
    /// Its silence was told. It stays silent while there is no session, until a new one is proven.
    is_silent: bool,
}

#[derive(Default)]
pub(crate) struct Watches {
    watched: BTreeMap<PeerId, Watched>,
    due: BTreeSet<(Instant, PeerId)>,
}

impl Watches {
    /// Watches a peer, or no longer.
    pub(crate) fn set(&mut self, peer: PeerId, silence: Option<Duration>, live: Option<&mut Live>) {
        match silence {
            Some(silence) => {
                let new = Watched { silence, due_at: None, is_silent: false };
                self.watched.entry(peer).or_insert(new).silence = silence;
                let since = live.as_deref().and_then(|live| live.unanswered_since);
                if let Some(since) = since {
                    self.on_unanswered(peer, since);
                }
            }
            None => {
                self.disarm(peer);
                self.watched.remove(&peer);
            }
        }
        if let Some(live) = live {
            live.mark = self.mark(peer);
        }
    }

    /// What one that becomes live carries.
    pub(crate) fn mark(&self, peer: PeerId) -> Mark {
        match self.watched.get(&peer) {
            None => Mark::Off,
            Some(Watched { is_silent: true, .. }) => Mark::Silent,
            Some(Watched { due_at: Some(_), .. }) => Mark::Due,
            Some(Watched { due_at: None, .. }) => Mark::Calm,
        }
    }

    /// Data to one that is watched is unanswered since then.
    pub(crate) fn on_unanswered(&mut self, peer: PeerId, since: Instant) {
        self.disarm(peer);
        if let Some(watched) = self.watched.get_mut(&peer).filter(|watched| !watched.is_silent) {
            let due_at = since + watched.silence;
            watched.due_at = Some(due_at);
            self.due.insert((due_at, peer));
        }
    }

    /// One that was silent was heard.
    pub(crate) fn on_heard(&mut self, peer: PeerId) {
        if let Some(watched) = self.watched.get_mut(&peer) {
            watched.is_silent = false;
        }
    }

    /// Whose deadline is over: to be judged.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<PeerId> {
        let (_, peer) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.disarm(peer);
        Some(peer)
    }

    /// Whether it is silent: how long ago the data that is unanswered was sent.
    pub(crate) fn judge(&mut self, peer: PeerId, live: &mut Live, now: Instant) -> Option<Duration> {
        let since = live.unanswered_since;
        let silent = match (since, self.watched.get_mut(&peer)) {
            (Some(since), Some(watched)) if now >= since + watched.silence => {
                watched.is_silent = true;
                Some(now.saturating_duration_since(since))
            }
            (Some(since), _) => {
                self.on_unanswered(peer, since);
                None
            }
            (None, _) => None,
        };
        live.mark = self.mark(peer);
        silent
    }

    /// When to poll.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    fn disarm(&mut self, peer: PeerId) {
        if let Some(at) = self.watched.get_mut(&peer).and_then(|watched| watched.due_at.take()) {
            self.due.remove(&(at, peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        PrivateKey, PublicKey,
        noise::{Identity, Noise},
    };

    const SILENCE: Duration = Duration::from_millis(150);
    const PEER: PeerId = PeerId(3);

    fn live(watches: &Watches, peer: PeerId, now: Instant) -> Live {
        let identity = Identity::new(&PrivateKey::from([9; 32]));
        let mut live = Live::new(Noise::new(&identity, PublicKey([1; 32]), None, 1), 1, now);
        live.mark = watches.mark(peer);
        live
    }

    fn watching(now: Instant) -> (Watches, Live) {
        let mut watches = Watches::default();
        watches.set(PEER, Some(SILENCE), None);
        let live = live(&watches, PEER, now);
        (watches, live)
    }

    /// Data goes out, as workers send it.
    fn send(watches: &mut Watches, live: &mut Live, now: Instant) {
        if live.on_data_sent(now) {
            watches.on_unanswered(PEER, now);
        }
    }

    /// Whoever is silent by now, with this session.
    fn poll(watches: &mut Watches, live: &mut Live, now: Instant) -> Option<(PeerId, Duration)> {
        let due = watches.poll(now)?;
        Some((due, watches.judge(due, live, now)?))
    }

    /// Something comes; whether that is news.
    fn hear(watches: &mut Watches, live: &mut Live, now: Instant) -> bool {
        live.on_heard(now);
        let is_news = live.is_back();
        if is_news {
            watches.on_heard(PEER);
        }
        is_news
    }

    #[test]
    fn silence_is_told_once_and_so_is_its_end() {
        let start = Instant::now();
        let (mut watches, mut live) = watching(start);
        assert_eq!(watches.deadline(), None);
        send(&mut watches, &mut live, start);
        assert_eq!(watches.deadline(), Some(start + SILENCE));
        assert_eq!(poll(&mut watches, &mut live, start), None);
        let later = start + SILENCE;
        assert_eq!(poll(&mut watches, &mut live, later), Some((PEER, SILENCE)));
        send(&mut watches, &mut live, later);
        assert_eq!((watches.poll(later + SILENCE), watches.deadline()), (None, None));
        assert!(hear(&mut watches, &mut live, later + SILENCE));
        assert!(!hear(&mut watches, &mut live, later + SILENCE));
        send(&mut watches, &mut live, later + SILENCE);
        assert_eq!(poll(&mut watches, &mut live, later + SILENCE * 2), Some((PEER, SILENCE)));
    }

    #[test]
    fn answers_put_a_silence_off_and_touch_nothing() {
        let start = Instant::now();
        let (mut watches, mut live) = watching(start);
        let step = SILENCE / 10;
        let mut looks = 0;
        for at in 0..1000 {
            let now = start + step * at;
            send(&mut watches, &mut live, now);
            if let Some(due) = watches.poll(now) {
                looks += 1;
                assert_eq!(watches.judge(due, &mut live, now), None);
            }
            assert!(!hear(&mut watches, &mut live, now));
        }
        assert!(looks <= 1000 / 10, "{looks}");
        let last = start + step * 1000;
        send(&mut watches, &mut live, last);
        assert_eq!(poll(&mut watches, &mut live, last + SILENCE - step / 2), None);
        assert_eq!(watches.deadline(), Some(last + SILENCE), "its own, whenever the one before was");
    }

    #[test]
    fn a_thousand_that_have_nothing_unanswered_are_not_looked_at() {
        let start = Instant::now();
        let (mut watches, mut busy) = watching(start);
        (10..1010).for_each(|peer| watches.set(PeerId(peer), Some(SILENCE), None));
        let mut looked_at = Vec::new();
        for at in 0..1000 {
            let now = start + SILENCE / 50 * at;
            send(&mut watches, &mut busy, now);
            while let Some(due) = watches.poll(now) {
                looked_at.push(due);
                watches.judge(due, &mut busy, now);
            }
        }
        assert_eq!(looked_at, [PEER], "told once, at its deadline");
    }

    #[test]
    fn a_session_that_ends_is_no_answer_and_a_new_one_is() {
        let start = Instant::now();
        let (mut watches, mut first) = watching(start);
        send(&mut watches, &mut first, start);
        let told_at = start + SILENCE;
        assert!(poll(&mut watches, &mut first, told_at).is_some());
        let mut second = live(&watches, PEER, told_at);
        assert_eq!(second.mark, Mark::Silent, "also of another session, which is not proven");
        let proven_at = told_at + SILENCE * 2;
        assert!(hear(&mut watches, &mut second, proven_at));
        // With what waited, which went out in the same turn.
        send(&mut watches, &mut second, proven_at);
        let silent = poll(&mut watches, &mut second, proven_at + SILENCE);
        assert_eq!(silent, Some((PEER, SILENCE)));
    }

    #[test]
    fn one_that_ends_before_its_deadline_is_watched_again_with_its_next_session() {
        let start = Instant::now();
        let (mut watches, mut first) = watching(start);
        send(&mut watches, &mut first, start);
        assert_eq!(watches.poll(start + SILENCE), Some(PEER), "and there is nobody to judge");
        let mut second = live(&watches, PEER, start + SILENCE);
        send(&mut watches, &mut second, start + SILENCE);
        assert!(poll(&mut watches, &mut second, start + SILENCE * 2).is_some());
    }

    #[test]
    fn another_silence_counts_from_the_same_data_and_who_is_watched_no_more_is_forgotten() {
        let start = Instant::now();
        let (mut watches, mut live) = watching(start);
        send(&mut watches, &mut live, start);
        watches.set(PEER, Some(SILENCE * 4), Some(&mut live));
        assert_eq!(watches.deadline(), Some(start + SILENCE * 4));
        watches.set(PEER, None, Some(&mut live));
        assert_eq!((watches.deadline(), live.mark, watches.watched.len()), (None, Mark::Off, 0));
        send(&mut watches, &mut live, start);
        assert_eq!(watches.deadline(), None);
        // What was sent before it was watched counts as well.
        watches.set(PEER, Some(SILENCE), Some(&mut live));
        assert_eq!(watches.deadline(), Some(start + SILENCE));
    }
}
