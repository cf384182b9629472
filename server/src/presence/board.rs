//! Who is online, by rules alone: what is served here, what other servers wrote, and which of them live. No I/O, no clock.
//!
//! A node is online while it is served here, or while its row says so and the row's server holds a lease. Where a session ends without a
//! word, the node stays online for a grace: an agent that only changes its connection does not flicker before its peers.

use imbl::OrdSet;
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// How long a node that vanished stays online.
pub(crate) const VANISHED_GRACE: Duration = Duration::from_secs(2);
/// Who said goodbye may have moved to another server, of which this one has yet to hear.
pub(crate) const GOODBYE_GRACE: Duration = Duration::from_millis(500);

/// The serving session of a node, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) server: ServerId,
    pub(crate) number: SessionNumber,
    pub(crate) online: bool,
}

#[derive(Debug, Clone, Copy)]
struct Here {
    number: SessionNumber,
    /// Ended, and forgotten at this time.
    ends_at: Option<Instant>,
}

/// All seats, and who is online by them.
#[derive(Debug)]
pub(crate) struct Board {
    me: ServerId,
    here: BTreeMap<NodeId, Here>,
    /// As in the database.
    rows: BTreeMap<NodeId, Seat>,
    live: BTreeSet<ServerId>,
    online: OrdSet<NodeId>,
    /// Seats of this server that the database does not have yet.
    unsaved: BTreeMap<NodeId, Seat>,
    /// Seats that are being written.
    saving: BTreeSet<NodeId>,
}

impl Board {
    pub(crate) fn new(me: ServerId) -> Self {
        Self {
            me,
            here: BTreeMap::new(),
            rows: BTreeMap::new(),
            live: BTreeSet::new(),
            online: OrdSet::new(),
            unsaved: BTreeMap::new(),
            saving: BTreeSet::new(),
        }
    }

    pub(crate) fn online(&self) -> &OrdSet<NodeId> {
        &self.online
    }

    /// A newer session of the node than `number` that another live server serves.
    pub(crate) fn newer_elsewhere(&self, node: NodeId, number: SessionNumber) -> Option<ServerId> {
        let seat = self.rows.get(&node)?;
        let newer = seat.online && seat.server != self.me && seat.number > number;
        (newer && self.live.contains(&seat.server)).then_some(seat.server)
    }

    /// The other server that serves the node.
    pub(crate) fn served_by(&self, node: NodeId) -> Option<ServerId> {
        let seat = self.rows.get(&node)?;
        let other = seat.online && seat.server != self.me;
        (other && self.live.contains(&seat.server)).then_some(seat.server)
    }

    /// A session here begins to serve.
    pub(crate) fn handle_served(&mut self, node: NodeId, number: SessionNumber) {
        self.here.insert(node, Here { number, ends_at: None });
        self.unsaved.insert(node, Seat { server: self.me, number, online: true });
        self.update(node);
    }

    /// The session here serves no more. `ends_at`: it may come back until then.
    pub(crate) fn handle_left(&mut self, node: NodeId, number: SessionNumber, ends_at: Instant) {
        if let Some(here) = self.here.get_mut(&node)
            && here.number == number
        {
            here.ends_at = Some(ends_at);
        }
    }

    /// What the database says of a node. Returns whether a session here was replaced by it.
    pub(crate) fn handle_row(&mut self, node: NodeId, seat: Seat) -> bool {
        self.rows.insert(node, seat);
        let here = self.here.get(&node);
        let replaced =
            seat.server != self.me && seat.online && here.is_some_and(|here| here.number < seat.number);
        let is_phantom = seat.server == self.me && seat.online && here.is_none();
        if replaced {
            self.here.remove(&node);
            self.unsaved.remove(&node);
        }
        // Written late, when the session here was over.
        if is_phantom {
            self.unsaved.entry(node).or_insert(Seat { online: false, ..seat });
        }
        self.update(node);
        replaced
    }

    /// A row of this server from before its start: nobody sits there, but the agent is likely to be back in a moment.
    pub(crate) fn handle_inherited(&mut self, node: NodeId, seat: Seat, ends_at: Instant) {
        self.rows.insert(node, seat);
        if seat.online && !self.here.contains_key(&node) {
            self.here.insert(node, Here { number: seat.number, ends_at: Some(ends_at) });
        }
        self.update(node);
    }

    pub(crate) fn handle_live(&mut self, live: BTreeSet<ServerId>) {
        if live == self.live {
            return;
        }
        let changed: BTreeSet<_> = live.symmetric_difference(&self.live).copied().collect();
        self.live = live;
        let touched = self.rows.iter().filter(|(_, seat)| changed.contains(&seat.server));
        let touched: Vec<_> = touched.map(|(node, _)| *node).collect();
        touched.into_iter().for_each(|node| self.update(node));
    }

    /// Forgets those whose grace is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let over = |here: &Here| here.ends_at.is_some_and(|end| end <= now);
        let ended: Vec<_> = self
            .here
            .iter()
            .filter(|(_, here)| over(here))
            .map(|(node, here)| (*node, here.number))
            .collect();
        for (node, number) in ended {
            self.here.remove(&node);
            self.unsaved.insert(node, Seat { server: self.me, number, online: false });
            self.update(node);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.here.values().filter_map(|here| here.ends_at).min()
    }

    /// Ends everything here: the server goes.
    pub(crate) fn handle_drained(&mut self, now: Instant) {
        self.here.values_mut().for_each(|here| here.ends_at = Some(now));
        self.handle_timeout(now);
    }

    pub(crate) fn take_unsaved(&mut self) -> Vec<(NodeId, Seat)> {
        let seats = std::mem::take(&mut self.unsaved);
        self.saving = seats.keys().copied().collect();
        seats.into_iter().collect()
    }

    /// Those that were taken are written.
    pub(crate) fn handle_saved(&mut self) {
        self.saving.clear();
    }

    /// Whether the database has what is known here of the node's seat.
    pub(crate) fn is_saved(&self, node: NodeId) -> bool {
        !self.unsaved.contains_key(&node) && !self.saving.contains(&node)
    }

    /// They could not be written; what came meanwhile is newer.
    pub(crate) fn restore_unsaved(&mut self, seats: Vec<(NodeId, Seat)>) {
        self.saving.clear();
        for (node, seat) in seats {
            self.unsaved.entry(node).or_insert(seat);
        }
    }

    /// Has all seats here written again: a database that lost them, or never had them, gets to know them.
    pub(crate) fn handle_refresh(&mut self) {
        for (node, here) in &self.here {
            let seat = Seat { server: self.me, number: here.number, online: true };
            self.unsaved.entry(*node).or_insert(seat);
        }
    }

    /// Forgets nodes that are removed.
    pub(crate) fn handle_removed(&mut self, is_gone: impl Fn(NodeId) -> bool) {
        self.rows.retain(|node, _| !is_gone(*node));
        self.here.retain(|node, _| !is_gone(*node));
        self.unsaved.retain(|node, _| !is_gone(*node));
        let gone: Vec<_> = self.online.iter().copied().filter(|node| is_gone(*node)).collect();
        for node in &gone {
            self.online.remove(node);
        }
    }

    fn update(&mut self, node: NodeId) {
        let online = self.here.contains_key(&node) || self.served_by(node).is_some();
        match online {
            true => self.online.insert(node),
            false => self.online.remove(&node),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ServerId = ServerId([1; 16]);
    const OTHER: ServerId = ServerId([2; 16]);
    const NODE: NodeId = NodeId(7);

    fn number(counter: u64) -> SessionNumber {
        SessionNumber { boot: 1, counter }
    }

    fn elsewhere(counter: u64, online: bool) -> Seat {
        Seat { server: OTHER, number: number(counter), online }
    }

    fn board() -> Board {
        let mut board = Board::new(ME);
        board.handle_live([ME, OTHER].into());
        board
    }

    #[test]
    fn a_node_that_vanished_stays_online_for_its_grace() {
        let (mut board, now) = (board(), Instant::now());
        board.handle_served(NODE, number(1));
        board.handle_left(NODE, number(1), now + VANISHED_GRACE);
        board.handle_timeout(now + VANISHED_GRACE / 2);
        assert!(board.online().contains(&NODE));
        assert_eq!(board.poll_timeout(), Some(now + VANISHED_GRACE));
        board.handle_timeout(now + VANISHED_GRACE);
        assert!(!board.online().contains(&NODE));
        assert_eq!(board.poll_timeout(), None);
        let seat = Seat { server: ME, number: number(1), online: false };
        assert_eq!(board.take_unsaved(), [(NODE, seat)]);
    }

    #[test]
    fn the_end_of_an_older_session_does_not_end_a_newer_one() {
        let (mut board, now) = (board(), Instant::now());
        board.handle_served(NODE, number(1));
        board.handle_served(NODE, number(2));
        board.handle_left(NODE, number(1), now);
        board.handle_timeout(now);
        assert!(board.online().contains(&NODE));
    }

    #[test]
    fn a_newer_session_elsewhere_replaces_the_one_here_and_an_older_does_not() {
        let mut board = board();
        board.handle_served(NODE, number(2));
        assert!(!board.handle_row(NODE, elsewhere(1, true)));
        assert!(board.handle_row(NODE, elsewhere(3, true)));
        assert_eq!(board.served_by(NODE), Some(OTHER));
        assert_eq!(board.newer_elsewhere(NODE, number(2)), Some(OTHER));
        assert_eq!(board.newer_elsewhere(NODE, number(4)), None);
        assert!(board.take_unsaved().is_empty(), "the seat here is given up");
    }

    #[test]
    fn a_seat_that_was_given_up_elsewhere_replaces_nothing() {
        let mut board = board();
        board.handle_served(NODE, number(2));
        assert!(!board.handle_row(NODE, elsewhere(3, false)));
        assert!(board.online().contains(&NODE));
    }

    #[test]
    fn a_row_of_this_server_where_nobody_sits_is_ended() {
        let mut board = board();
        let phantom = Seat { server: ME, number: number(1), online: true };
        board.handle_row(NODE, phantom);
        assert_eq!(board.take_unsaved(), [(NODE, Seat { online: false, ..phantom })]);
    }

    #[test]
    fn a_refresh_says_all_that_sit_here_again() {
        let mut board = board();
        board.handle_served(NODE, number(1));
        let said = board.take_unsaved();
        board.handle_refresh();
        assert_eq!(board.take_unsaved(), said);
    }

    #[test]
    fn a_removed_node_is_forgotten_wherever_it_was() {
        const ELSEWHERE: NodeId = NodeId(8);
        let mut board = board();
        board.handle_served(NODE, number(1));
        board.handle_row(ELSEWHERE, elsewhere(1, true));
        board.handle_removed(|node| node == NODE || node == ELSEWHERE);
        assert!(board.online().is_empty() && board.take_unsaved().is_empty());
        board.handle_live([ME].into());
        board.handle_live([ME, OTHER].into());
        board.handle_refresh();
        assert!(board.online().is_empty() && board.take_unsaved().is_empty());
    }

    #[test]
    fn nobody_is_online_on_a_server_whose_lease_ended() {
        let mut board = board();
        board.handle_row(NODE, elsewhere(1, true));
        assert!(board.online().contains(&NODE));
        board.handle_live([ME].into());
        assert!(!board.online().contains(&NODE));
        board.handle_live([ME, OTHER].into());
        assert!(board.online().contains(&NODE));
    }

    #[test]
    fn a_server_that_drains_ends_its_seats() {
        let mut board = board();
        board.handle_served(NODE, number(1));
        board.take_unsaved();
        board.handle_drained(Instant::now());
        assert!(board.online().is_empty());
        assert!(matches!(board.take_unsaved()[..], [(NODE, Seat { online: false, .. })]));
    }

    #[test]
    fn seats_that_could_not_be_written_do_not_overwrite_newer_ones() {
        let mut board = board();
        board.handle_served(NODE, number(1));
        let failed = board.take_unsaved();
        assert!(!board.is_saved(NODE), "it is on its way");
        board.handle_served(NODE, number(2));
        board.restore_unsaved(failed);
        assert!(!board.is_saved(NODE));
        assert!(matches!(board.take_unsaved()[..], [(NODE, seat)] if seat.number == number(2)));
        board.handle_saved();
        assert!(board.is_saved(NODE));
    }
}
