//! Packets that wait for a handshake. Bounded per peer and in total; the oldest stay, as the first is the one that
//! somebody waits for.

use std::collections::VecDeque;

/// Packets per peer.
const MAX_PACKETS: usize = 64;
/// Bytes over all peers, of their first packets: full-sized ones of ten thousand peers.
const MAX_BYTES: usize = 16 << 20;
/// Beyond so many bytes, peers that have a packet here get no more in: others' first is worth more than their second.
const MAX_BYTES_OF_MORE: usize = 4 << 20;
/// What a waiting packet costs besides its bytes: two allocations' overhead and its place in the queue.
const PACKET_COST: usize = 64;

/// The room that all queues share.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: usize,
}

/// One peer's waiting packets.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Box<[u8]>>);

impl Queue {
    /// Puts a packet at the end; `false` if there is no room.
    pub(crate) fn push(&mut self, packet: &[u8], budget: &mut Budget) -> bool {
        let cost = packet.len() + PACKET_COST;
        let limit = if self.0.is_empty() { MAX_BYTES } else { MAX_BYTES_OF_MORE };
        if self.0.len() >= MAX_PACKETS || budget.used + cost > limit {
            return false;
        }
        budget.used += cost;
        self.0.push_back(packet.into());
        true
    }

    /// Takes all packets, oldest first. An empty queue holds no memory.
    pub(crate) fn take(&mut self, budget: &mut Budget) -> impl Iterator<Item = Box<[u8]>> + use<> {
        let packets = std::mem::take(&mut self.0);
        budget.used -= packets.iter().map(|packet| packet.len() + PACKET_COST).sum::<usize>();
        packets.into_iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
        assert_eq!(budget.used, 0);
    }

    #[test]
    fn all_peers_together_stay_within_the_budget_and_give_it_back() {
        let (mut queues, mut budget) = (Vec::new(), Budget::default());
        queues.resize_with(1000, Queue::default);
        let kept =
            queues.iter_mut().filter_map(|queue| queue.push(&[0; 60_000], &mut budget).then_some(())).count();
        assert_eq!(kept, MAX_BYTES / (60_000 + PACKET_COST));
        queues.iter_mut().for_each(|queue| queue.clear(&mut budget));
        assert_eq!(budget.used, 0);
    }

    #[test]
    fn who_has_much_waiting_leaves_room_for_the_first_packet_of_each_of_eight_thousand_others() {
        let (mut greedy, mut budget) = (Vec::new(), Budget::default());
        greedy.resize_with(100, Queue::default);
        for _ in 0..MAX_PACKETS {
            greedy.iter_mut().for_each(|queue| {
                queue.push(&[0; 1420], &mut budget);
            });
        }
        assert!(budget.used <= MAX_BYTES_OF_MORE);
        let mut modest = Vec::new();
        modest.resize_with(8000, Queue::default);
        assert!(modest.iter_mut().all(|queue| queue.push(&[0; 1420], &mut budget)));
        assert!(!modest[0].push(&[0; 1420], &mut budget));
    }
}
