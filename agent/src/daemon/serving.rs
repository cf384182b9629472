//! Makes the machine serve what the node claims, in a task of its own: a program that it calls may hang, and the event loop waits for nothing.
//!
//! The latest order wins. What could not be done is tried again, ever more seldom, and what was done is looked at now and then: somebody else may have
//! undone it.

use crate::platform::{self, Trouble};
use ipnet::IpNet;
use std::time::Duration;
use tokio::{sync::watch, task::JoinHandle, time};

/// When something is tried, or looked at, again.
#[derive(Debug, Clone, Copy)]
struct Pace {
    first_retry: Duration,
    /// Each pause is twice the one before it, up to this.
    last_retry: Duration,
    look_interval: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { first_retry: Duration::from_secs(2), last_retry: minute, look_interval: minute }
    }
}

/// At the end; longer than two programs that hang are waited for: one of the order before, one that takes back.
const ENDING_TIME: Duration = Duration::from_secs(8);
/// For all that is looked at where nothing is changed.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// What serves.
pub(super) trait Machine: Send + 'static {
    /// Makes it serve these and no others, whatever was done before.
    fn apply(&mut self, served: &[IpNet], masquerade: bool) -> impl Future<Output = Vec<Trouble>> + Send;
    /// What of the machine may be in the way. Changes nothing, and may be dropped.
    fn look(&mut self, served: &[IpNet]) -> impl Future<Output = Vec<Trouble>> + Send;
}

impl Machine for platform::Serving {
    fn apply(&mut self, served: &[IpNet], masquerade: bool) -> impl Future<Output = Vec<Trouble>> + Send {
        self.apply(served, masquerade)
    }

    fn look(&mut self, served: &[IpNet]) -> impl Future<Output = Vec<Trouble>> + Send {
        Self::look(self, served)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Order {
    served: Vec<IpNet>,
    masquerade: bool,
    /// Grows with each.
    number: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Outcome {
    /// Of the order that it came of.
    number: u64,
    troubles: Vec<Trouble>,
}

/// Ends what it does when it is dropped; what is to be taken back, [`clear`](Self::clear) takes back.
pub(super) struct Serving {
    orders: watch::Sender<Order>,
    outcomes: watch::Receiver<Outcome>,
    task: JoinHandle<()>,
    /// As last seen.
    troubles: Vec<Trouble>,
}

impl Serving {
    pub(super) fn start(machine: impl Machine) -> Self {
        Self::start_at(Pace::default(), machine)
    }

    fn start_at(pace: Pace, machine: impl Machine) -> Self {
        let (orders, ordered) = watch::channel(Order::default());
        let (sender, outcomes) = watch::channel(Outcome::default());
        let task = tokio::spawn(work(pace, machine, ordered, sender));
        Self { orders, outcomes, task, troubles: Vec::new() }
    }

    /// To be served from now on, and nothing else.
    pub(super) fn order(&self, served: &[IpNet], masquerade: bool) {
        self.orders.send_if_modified(|order| {
            let is_news = order.served != served || order.masquerade != masquerade;
            if is_news {
                *order = Order { served: served.to_vec(), masquerade, number: order.number + 1 };
            }
            is_news
        });
    }

    /// The machine may be another than it was left.
    pub(super) fn look_again(&self) {
        self.orders.send_if_modified(|order| {
            let serves = !order.served.is_empty();
            order.number += u64::from(serves);
            serves
        });
    }

    /// Returns when there is something new. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        match self.outcomes.changed().await {
            Ok(()) => self.see(),
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    /// Takes everything back, and waits for it.
    pub(super) async fn clear(&mut self) {
        self.order(&[], false);
        let wanted = self.orders.borrow().number;
        let is_done = |outcome: &Outcome| outcome.number >= wanted;
        match time::timeout(ENDING_TIME, self.outcomes.wait_for(is_done)).await {
            Ok(Ok(outcome)) => {
                for trouble in &outcome.troubles {
                    tracing::warn!(
                        trouble = trouble.text,
                        "what was changed on this machine for claims is not wholly taken back"
                    );
                }
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(
                    "what was changed on this machine for claims is not taken back: it takes too long"
                );
            }
        }
        self.troubles.clear();
    }

    fn see(&mut self) {
        let Outcome { troubles, .. } = self.outcomes.borrow_and_update().clone();
        for trouble in troubles.iter().filter(|trouble| !self.troubles.contains(trouble)) {
            tracing::warn!(trouble = trouble.text, "what this node claims may not be served");
        }
        if troubles.is_empty() && !self.troubles.is_empty() {
            tracing::info!("nothing on this machine is in the way of what the node claims any more");
        }
        self.troubles = troubles;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn work(
    pace: Pace,
    mut machine: impl Machine,
    mut orders: watch::Receiver<Order>,
    outcomes: watch::Sender<Outcome>,
) {
    let mut retry = pace.first_retry;
    // Until there is something to serve, nothing is touched.
    while orders.changed().await.is_ok() {
        let mut in_the_way = Vec::new();
        loop {
            let Order { served, masquerade, number } = orders.borrow_and_update().clone();
            let undone = machine.apply(&served, masquerade).await;
            if served.is_empty() {
                in_the_way.clear();
            }
            // What was seen holds until the next look, or it would be news each time.
            tell(&outcomes, Outcome { number, troubles: [&undone[..], &in_the_way].concat() });
            tokio::select! {
                biased;
                changed = orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                seen = time::timeout(LOOK_TIME, machine.look(&served)) => {
                    in_the_way = seen.unwrap_or_default();
                }
            }
            let troubles = [undone, in_the_way.clone()].concat();
            let pause = match (troubles.is_empty(), served.is_empty()) {
                (true, true) => None,
                (true, false) => Some(pace.look_interval),
                (false, _) => Some(retry),
            };
            retry = if troubles.is_empty() { pace.first_retry } else { (retry * 2).min(pace.last_retry) };
            tell(&outcomes, Outcome { number, troubles });
            let Some(pause) = pause else { break };
            tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => {}
                    Err(_) => return,
                },
                () = time::sleep(pause) => {}
            }
        }
    }
}

fn tell(outcomes: &watch::Sender<Outcome>, new: Outcome) {
    outcomes.send_if_modified(|outcome| {
        let is_news = *outcome != new;
        *outcome = new;
        is_news
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::{sync::Semaphore, time::Instant};

    /// A machine whose work takes until it is let.
    struct Slow {
        log: Log,
        leave: Arc<Semaphore>,
        failures: usize,
        looks: Looks,
    }

    /// How its looks end.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Looks {
        Well,
        Warning,
        Never,
    }

    type Log = Arc<Mutex<Vec<(Instant, Vec<IpNet>)>>>;

    impl Machine for Slow {
        async fn apply(&mut self, served: &[IpNet], _masquerade: bool) -> Vec<Trouble> {
            self.log.lock().unwrap().push((Instant::now(), served.to_vec()));
            self.leave.acquire().await.unwrap().forget();
            self.failures = self.failures.saturating_sub(1);
            match self.failures {
                0 => Vec::new(),
                _ => {
                    vec![Trouble { text: "forwarding cannot be switched".into(), unserved: vec![prefix(1)] }]
                }
            }
        }

        async fn look(&mut self, served: &[IpNet]) -> Vec<Trouble> {
            match self.looks {
                Looks::Well => Vec::new(),
                Looks::Warning if served.is_empty() => Vec::new(),
                Looks::Warning => vec![Trouble { text: "a firewall".into(), unserved: Vec::new() }],
                Looks::Never => std::future::pending().await,
            }
        }
    }

    fn prefix(number: u8) -> IpNet {
        format!("10.9.{number}.0/24").parse().unwrap()
    }

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn bench(leave: usize, failures: usize) -> (Serving, Log, Arc<Semaphore>) {
        bench_that_looks(leave, failures, Looks::Well)
    }

    fn bench_that_looks(leave: usize, failures: usize, looks: Looks) -> (Serving, Log, Arc<Semaphore>) {
        let (log, leave) = (Log::default(), Arc::new(Semaphore::new(leave)));
        let machine =
            Slow { log: Arc::clone(&log), leave: Arc::clone(&leave), failures: failures + 1, looks };
        let pace = Pace { first_retry: ms(5), last_retry: ms(20), look_interval: ms(30) };
        (Serving::start_at(pace, machine), log, leave)
    }

    async fn applied(log: &Log, times: usize) {
        while log.lock().unwrap().len() < times {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn while_a_program_hangs_orders_return_at_once_and_the_latest_wins() {
        let (mut serving, log, leave) = bench(0, 0);
        serving.order(&[prefix(1)], false);
        applied(&log, 1).await;
        (2..9).for_each(|number| serving.order(&[prefix(number)], false));
        leave.add_permits(2);
        let wanted = serving.orders.borrow().number;
        serving.outcomes.wait_for(|outcome| outcome.number == wanted).await.unwrap();
        let applied: Vec<_> = log.lock().unwrap().iter().map(|(_, served)| served[0]).collect();
        assert_eq!(applied, [prefix(1), prefix(8)]);
    }

    #[tokio::test]
    async fn what_fails_is_told_and_tried_again_ever_more_seldom_until_it_works_and_then_looked_at() {
        let (mut serving, log, _leave) = bench(100, 4);
        serving.order(&[prefix(1)], true);
        serving.changed().await;
        assert_eq!(serving.troubles().len(), 1);
        serving.changed().await;
        assert!(serving.troubles().is_empty());
        applied(&log, 7).await;
        let times: Vec<_> = log.lock().unwrap().iter().map(|(at, _)| *at).collect();
        for (pair, least) in times.windows(2).zip([5, 10, 20, 20, 30, 30]) {
            assert!(pair[1] - pair[0] >= ms(least), "{times:?}");
        }
    }

    #[tokio::test]
    async fn a_network_that_changed_is_a_reason_to_look_while_something_is_served() {
        let (mut serving, log, _leave) = bench(100, 0);
        serving.look_again();
        tokio::task::yield_now().await;
        assert!(log.lock().unwrap().is_empty());
        serving.order(&[prefix(1)], false);
        serving.changed().await;
        serving.look_again();
        serving.changed().await;
        assert!(log.lock().unwrap().len() >= 2);
        serving.clear().await;
        assert_eq!(log.lock().unwrap().last().unwrap().1, []);
        assert!(!serving.orders.borrow().masquerade);
    }

    #[tokio::test]
    async fn a_look_that_hangs_delays_nothing_and_is_dropped_when_something_else_is_ordered() {
        let (mut serving, log, _leave) = bench_that_looks(100, 0, Looks::Never);
        let begun = Instant::now();
        serving.order(&[prefix(1)], false);
        serving.changed().await;
        serving.order(&[prefix(2)], false);
        applied(&log, 2).await;
        serving.clear().await;
        assert!(begun.elapsed() < LOOK_TIME, "the look was waited for");
        assert_eq!(log.lock().unwrap().last().unwrap().1, []);
    }

    #[tokio::test]
    async fn a_look_that_never_ends_is_given_up() {
        let (serving, log, _leave) = bench_that_looks(100, 0, Looks::Never);
        serving.order(&[prefix(1)], false);
        time::timeout(3 * LOOK_TIME, applied(&log, 2)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_told_once_and_not_at_the_end() {
        let (mut serving, log, _leave) = bench_that_looks(100, 0, Looks::Warning);
        serving.order(&[prefix(1)], false);
        while serving.troubles().is_empty() {
            serving.changed().await;
        }
        applied(&log, 3).await;
        assert!(!serving.outcomes.has_changed().unwrap(), "it is told again");
        serving.order(&[], false);
        serving.outcomes.wait_for(|outcome| outcome.number == 2).await.unwrap();
        assert!(serving.outcomes.borrow().troubles.is_empty());
    }
}
