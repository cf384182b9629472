//! Peers whose silence the owner wants to hear of at once, not after WireGuard's 15 s: those that serve what several could. They are few, and looked at
//! once per turn.

use std::time::{Duration, Instant};

use crate::peer::PeerId;

struct Watched {
    peer: PeerId,
    /// Data may be unanswered for so long.
    silence: Duration,
    is_told: bool,
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
            (None, Some(silence)) => self.0.push(Watched { peer, silence, is_told: false }),
            (_, None) => self.0.retain(|watched| watched.peer != peer),
        }
    }

    /// What is news, given since when each peer's data is unanswered.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        mut unanswered_since: impl FnMut(PeerId) -> Option<Instant>,
    ) -> Option<(PeerId, News)> {
        self.0.iter_mut().find_map(|watched| {
            let elapsed = unanswered_since(watched.peer).map(|at| now.saturating_duration_since(at));
            let is_silent = elapsed.is_some_and(|elapsed| elapsed >= watched.silence);
            match (elapsed, watched.is_told) {
                (Some(elapsed), false) if is_silent => {
                    watched.is_told = true;
                    Some((watched.peer, News::Silent(elapsed)))
                }
                (None, true) => {
                    watched.is_told = false;
                    Some((watched.peer, News::Heard))
                }
                (Some(_) | None, _) => None,
            }
        })
    }

    /// When the next silence is long enough.
    pub(crate) fn deadline(
        &self,
        mut unanswered_since: impl FnMut(PeerId) -> Option<Instant>,
    ) -> Option<Instant> {
        let silent = self.0.iter().filter(|watched| !watched.is_told);
        silent.filter_map(|watched| Some(unanswered_since(watched.peer)? + watched.silence)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(150);

    #[test]
    fn silence_is_told_once_and_so_is_its_end() {
        let (start, peer) = (Instant::now(), PeerId(3));
        let mut watches = Watches::default();
        watches.set(peer, Some(SILENCE));
        assert_eq!(watches.deadline(|_| Some(start)), Some(start + SILENCE));
        assert_eq!(watches.poll(start, |_| Some(start)), None);
        let later = start + SILENCE;
        assert_eq!(watches.poll(later, |_| Some(start)), Some((peer, News::Silent(SILENCE))));
        assert_eq!(watches.poll(later, |_| Some(start)), None);
        assert_eq!(watches.deadline(|_| Some(start)), None);
        assert_eq!(watches.poll(later, |_| None), Some((peer, News::Heard)));
        assert_eq!(watches.poll(later, |_| None), None);
    }

    #[test]
    fn who_is_watched_no_more_is_forgotten() {
        let (start, peer) = (Instant::now(), PeerId(3));
        let mut watches = Watches::default();
        watches.set(peer, Some(SILENCE));
        watches.set(peer, None);
        assert_eq!(watches.poll(start + SILENCE, |_| Some(start)), None);
    }
}
