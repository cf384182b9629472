//! Packets that wait for a handshake. Bounded per peer and in total; the oldest stay, as the first is the one that
//! somebody waits for. First packets have room of their own, so peers that answer nothing take none of it with what else
//! is sent to them. Both together are the bound: 36 MB for a worker.

/// Packets per peer.
const MAX_PACKETS: usize = 64;
/// Bytes over all peers, of their first packets: full-sized ones of twenty thousand peers.
const MAX_FIRST_BYTES: usize = 32 << 20;
/// Bytes over all peers, of what follows these.
const MAX_MORE_BYTES: usize = 4 << 20;
/// What a waiting packet costs besides its bytes: two allocations' overhead and its place in the queue.
const PACKET_COST: usize = 64;

/// The room that all queues share.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    first: usize,
    more: usize,
}

impl Budget {
    /// The part that a packet at this place takes from, and how much it has.
    fn share(&mut self, place: usize) -> (&mut usize, usize) {
        match place {
            0 => (&mut self.first, MAX_FIRST_BYTES),
            _ => (&mut self.more, MAX_MORE_BYTES),
        }
    }
}

/// One peer's waiting packets. Without any it is a word, as most peers have none.
#[derive(Debug, Default)]
pub(crate) struct Queue(Option<Box<Packets>>);

#[derive(Debug, Default)]
struct Packets(Vec<Box<[u8]>>);

impl Queue {
    /// Puts a packet at the end; `false` if there is no room.
    pub(crate) fn push(&mut self, packet: &[u8], budget: &mut Budget) -> bool {
        let cost = packet.len() + PACKET_COST;
        let len = self.0.as_deref().map_or(0, |packets| packets.0.len());
        let (used, limit) = budget.share(len);
        if len >= MAX_PACKETS || *used + cost > limit {
            return false;
        }
        *used += cost;
        self.0.get_or_insert_default().0.push(packet.into());
        true
    }

    /// Takes all packets, oldest first. An empty queue holds no memory.
    pub(crate) fn take(&mut self, budget: &mut Budget) -> impl Iterator<Item = Box<[u8]>> + use<> {
        let packets = self.0.take().map(|packets| packets.0).unwrap_or_default();
        for (place, packet) in packets.iter().enumerate() {
            *budget.share(place).0 -= packet.len() + PACKET_COST;
        }
        packets.into_iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        drop(self.take(budget));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_keeps_its_oldest_packets() {
        let (mut queue, mut budget) = (Queue::default(), Budget::default());
        let kept = (0..100).filter(|&i| queue.push(&[i], &mut budget)).count();
        assert_eq!(kept, MAX_PACKETS);
        let packets: Vec<_> = queue.take(&mut budget).map(|packet| packet[0]).collect();
        assert_eq!(packets, (0..MAX_PACKETS as u8).collect::<Vec<_>>());
        assert_eq!((budget.first, budget.more), (0, 0));
    }

    #[test]
    fn all_peers_together_stay_within_the_budget_and_give_it_back() {
        let (mut queues, mut budget) = (Vec::new(), Budget::default());
        queues.resize_with(1000, Queue::default);
        let mut keep =
            || queues.iter_mut().map(|queue| usize::from(queue.push(&[0; 60_000], &mut budget))).sum();
        let (first, more): (usize, usize) = (keep(), keep());
        assert_eq!(first, MAX_FIRST_BYTES / (60_000 + PACKET_COST));
        // Those that have their first, and those that have none.
        assert_eq!(more, MAX_MORE_BYTES / (60_000 + PACKET_COST));
        queues.iter_mut().for_each(|queue| queue.clear(&mut budget));
        assert_eq!((budget.first, budget.more), (0, 0));
    }

    #[test]
    fn who_has_much_waiting_leaves_room_for_the_full_sized_first_packets_of_ten_thousand_others() {
        let (mut greedy, mut budget) = (Vec::new(), Budget::default());
        greedy.resize_with(100, Queue::default);
        let mut push_all = || {
            greedy.iter_mut().filter_map(|queue| queue.push(&[0; 1420], &mut budget).then_some(())).count()
        };
        let kept: usize = (0..MAX_PACKETS).map(|_| push_all()).sum();
        assert!(kept < 100 * MAX_PACKETS, "they do not take all");
        let mut modest = Vec::new();
        modest.resize_with(10_000, Queue::default);
        assert!(modest.iter_mut().all(|queue| queue.push(&[0; 1420], &mut budget)));
        assert!(!modest[0].push(&[0; 1420], &mut budget), "the rest is shared, and taken");
        // And once more, when their sessions have come and gone.
        modest.iter_mut().for_each(|queue| queue.clear(&mut budget));
        assert!(modest.iter_mut().all(|queue| queue.push(&[0; 1420], &mut budget)));
    }
}
