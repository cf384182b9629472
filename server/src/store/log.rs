//! How a follower stands to the log. The (revision, id) that it remembers must be in the log: where it is not, either the log was pruned past it
//! or the database went back in time, to a state that never saw it.

use crate::cluster::{Change, Head};

/// What the log has after the head that a follower knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Tail {
    /// The changes after it, in order; none: it is level.
    Changes(Vec<Change>),
    /// It has to load the whole state again.
    Lost(Lost),
}

/// Why a follower cannot go on from where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The log no longer goes back that far.
    Pruned,
    /// Somebody has begun a new epoch.
    NewEpoch,
    /// The log does not have what the follower saw: the database went back in time.
    WentBack { to: Head },
}

/// Judges `known` against the log: its head, its oldest revision, and whether the change of the known revision that it holds is the one known.
/// `None`: the follower can go on.
pub(crate) fn judge(known: Head, head: Head, oldest: u64, holds_known: bool) -> Option<Lost> {
    if head.version.epoch > known.version.epoch {
        return Some(Lost::NewEpoch);
    }
    let is_ahead = known.version > head.version;
    let is_pruned = known.version.revision < oldest;
    match (holds_known, is_ahead, is_pruned) {
        (true, false, _) => None,
        (false, false, true) => Some(Lost::Pruned),
        (_, true, _) | (false, false, false) => Some(Lost::WentBack { to: head }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ChangeId;
    use proto::map::MapVersion;

    fn head(epoch: u64, revision: u64, id: u8) -> Head {
        Head { version: MapVersion { epoch, revision }, id: ChangeId([id; 16]) }
    }

    #[test]
    fn a_follower_whose_change_is_in_the_log_goes_on() {
        assert_eq!(judge(head(1, 5, 5), head(1, 9, 9), 1, true), None);
        assert_eq!(judge(head(1, 9, 9), head(1, 9, 9), 1, true), None);
    }

    #[test]
    fn pruned_gone_back_and_a_new_epoch_are_told_apart() {
        let now = head(1, 9, 9);
        assert_eq!(judge(head(1, 3, 3), now, 5, false), Some(Lost::Pruned));
        assert_eq!(judge(head(1, 12, 1), now, 5, false), Some(Lost::WentBack { to: now }));
        assert_eq!(judge(head(1, 9, 8), now, 5, false), Some(Lost::WentBack { to: now }));
        assert_eq!(judge(head(1, 7, 8), now, 5, false), Some(Lost::WentBack { to: now }));
        assert_eq!(judge(head(1, 12, 1), head(2, 13, 2), 5, false), Some(Lost::NewEpoch));
        assert_eq!(judge(head(2, 3, 1), now, 1, false), Some(Lost::WentBack { to: now }));
    }
}
