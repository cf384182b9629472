//! Peers whose silence the owner wants to hear of at once, not after WireGuard's 15 s: those that serve what several could. They are few, and looked at
//! once per turn.

use std::time::{Duration, Instant};

use crate::peer::PeerId;

struct Watched {
    peer: PeerId,
    /// Data may be unanswered for so long.
    silence: Duration,
    /// When its silence was told.
    told_at: Option<Instant>,
}

/// What is known of a peer that has a session, or had one when data was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contact {
    /// When something authentic came last in the present session; a session that ended is no answer.
    pub(crate) heard_at: Option<Instant>,
    pub(crate) unanswered_since: Option<Instant>,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The data that is unanswered was sent so long ago.
    Silent(Duration),
    Heard,
}

#[derive(Default)]
pub(crate) struct Watches(Vec<Watched>);

impl Watches {
    /// Watches a peer, or no longer.
    pub(crate) fn set(&mut self, peer: PeerId, silence: Option<Duration>) {
        let known = self.0.iter_mut().find(|watched| watched.peer == peer);
        match (known, silence) {
            (Some(watched), Some(silence)) => watched.silence = silence,
            (None, Some(silence)) => self.0.push(Watched { peer, silence, told_at: None }),
            (_, None) => self.0.retain(|watched| watched.peer != peer),
        }
    }

    /// What is news. Who was silent stays so while there is no session: until a new one is proven.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        mut contact: impl FnMut(PeerId) -> Option<Contact>,
    ) -> Option<(PeerId, News)> {
        self.0.iter_mut().find_map(|watched| {
            let Contact { heard_at, unanswered_since } = contact(watched.peer)?;
            match (watched.told_at, unanswered_since) {
                (Some(told_at), _) if heard_at.is_some_and(|at| at > told_at) => {
                    watched.told_at = None;
                    Some((watched.peer, News::Heard))
                }
                (None, Some(since)) if now >= since + watched.silence => {
                    watched.told_at = Some(now);
                    Some((watched.peer, News::Silent(now.saturating_duration_since(since))))
                }
                (Some(_) | None, _) => None,
            }
        })
    }

    /// When the next silence is long enough.
    pub(crate) fn deadline(&self, mut contact: impl FnMut(PeerId) -> Option<Contact>) -> Option<Instant> {
        let unheard = self.0.iter().filter(|watched| watched.told_at.is_none());
        unheard.filter_map(|watched| Some(contact(watched.peer)?.unanswered_since? + watched.silence)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(150);
    const PEER: PeerId = PeerId(3);

    fn contact(heard_at: Instant, unanswered_since: Option<Instant>) -> Option<Contact> {
        Some(Contact { heard_at: Some(heard_at), unanswered_since })
    }

    fn watching() -> Watches {
        let mut watches = Watches::default();
        watches.set(PEER, Some(SILENCE));
        watches
    }

    #[test]
    fn silence_is_told_once_and_so_is_its_end() {
        let (start, mut watches) = (Instant::now(), watching());
        let silent = contact(start, Some(start));
        assert_eq!(watches.deadline(|_| silent), Some(start + SILENCE));
        assert_eq!(watches.poll(start, |_| silent), None);
        let later = start + SILENCE;
        assert_eq!(watches.poll(later, |_| silent), Some((PEER, News::Silent(SILENCE))));
        assert_eq!(watches.poll(later, |_| silent), None);
        assert_eq!(watches.deadline(|_| silent), None);
        let heard = contact(later + SILENCE, None);
        assert_eq!(watches.poll(later + SILENCE, |_| heard), Some((PEER, News::Heard)));
        assert_eq!(watches.poll(later + SILENCE, |_| heard), None);
    }

    #[test]
    fn a_session_that_ends_is_no_answer_and_a_new_one_is() {
        let (start, mut watches) = (Instant::now(), watching());
        let told_at = start + SILENCE;
        watches.poll(told_at, |_| contact(start, Some(start)));
        assert_eq!(watches.poll(told_at + SILENCE, |_| None), None, "it was forgotten");
        let unproven = Some(Contact { heard_at: None, unanswered_since: None });
        assert_eq!(watches.poll(told_at + SILENCE, |_| unproven), None, "and is asked for a session");
        // With what waited, which went out in the same turn.
        let proven_at = told_at + SILENCE * 2;
        let proven = contact(proven_at, Some(proven_at));
        assert_eq!(watches.poll(proven_at, |_| proven), Some((PEER, News::Heard)));
        assert_eq!(watches.poll(proven_at + SILENCE, |_| proven), Some((PEER, News::Silent(SILENCE))));
    }

    #[test]
    fn who_is_watched_no_more_is_forgotten() {
        let (start, mut watches) = (Instant::now(), watching());
        watches.set(PEER, None);
        assert_eq!(watches.poll(start + SILENCE, |_| contact(start, Some(start))), None);
    }
}
