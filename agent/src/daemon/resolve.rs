//! Names of servers, looked up off the event loop: the system's resolver blocks, and cannot be told to stop. So a name is looked up once at a time, and few
//! names at all; a result that comes late still counts.

use super::Event;
use proto::server_url::ServerUrl;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};

/// The system's resolver may take minutes when its servers are away; the core asks again.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Each holds a thread. Further names wait.
const MAX_LOOK_UPS: usize = 8;

pub(super) struct Resolver {
    under_way: Arc<UnderWay>,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

#[derive(Default)]
struct UnderWay(Mutex<BTreeSet<ServerUrl>>);

impl Default for Resolver {
    fn default() -> Self {
        Self { under_way: Arc::default(), permits: Arc::new(Semaphore::new(MAX_LOOK_UPS)), timeout: TIMEOUT }
    }
}

impl Resolver {
    pub(super) fn resolve(&self, url: ServerUrl, events: mpsc::Sender<Event>) {
        self.resolve_by(look_up, url, events);
    }

    fn resolve_by<F>(&self, look_up: impl FnOnce(ServerUrl) -> F, url: ServerUrl, events: mpsc::Sender<Event>)
    where
        F: Future<Output = Result<Vec<SocketAddr>, String>> + Send + 'static,
    {
        let is_first = self.under_way.names().insert(url.clone());
        let late =
            Event::Resolved(url.clone(), Err(format!("the name {} takes long to resolve", url.host())));
        let look_up = look_up(url.clone());
        let (under_way, permits, timeout) =
            (Arc::clone(&self.under_way), Arc::clone(&self.permits), self.timeout);
        tokio::spawn(async move {
            // Without an event loop nobody is interested any more.
            if !is_first {
                let _ = events.send(late).await;
                return;
            }
            let result = async {
                let _permit = permits.acquire().await;
                look_up.await
            };
            tokio::pin!(result);
            let result = match tokio::time::timeout(timeout, &mut result).await {
                Ok(result) => result,
                Err(_elapsed) => {
                    let _ = events.send(late).await;
                    result.await
                }
            };
            under_way.names().remove(&url);
            let _ = events.send(Event::Resolved(url, result)).await;
        });
    }
}

impl UnderWay {
    fn names(&self) -> MutexGuard<'_, BTreeSet<ServerUrl>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_up(url: ServerUrl) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((url.host(), url.port())).await;
    found.map(Iterator::collect).map_err(|error| format!("the name {} does not resolve: {error}", url.host()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    async fn result(events: &mut mpsc::Receiver<Event>) -> Result<Vec<SocketAddr>, String> {
        match events.recv().await {
            Some(Event::Resolved(_, result)) => result,
            _ => panic!("something else happened"),
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_at_a_time_and_a_late_result_counts() {
        let resolver = Resolver { timeout: Duration::from_millis(1), ..Resolver::default() };
        let (events, mut happened) = mpsc::channel(4);
        let url: ServerUrl = "a.example:1".parse().unwrap();
        let (found, waiting) = oneshot::channel::<Vec<SocketAddr>>();
        let slow = |_| async { Ok(waiting.await.unwrap()) };
        resolver.resolve_by(slow, url.clone(), events.clone());
        assert!(result(&mut happened).await.is_err());
        let never = |_| async { panic!("a second look-up") };
        resolver.resolve_by(never, url.clone(), events.clone());
        assert!(result(&mut happened).await.is_err());
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        found.send(vec![address]).unwrap();
        assert_eq!(result(&mut happened).await, Ok(vec![address]));
        resolver.resolve_by(|_| async { Ok(Vec::new()) }, url, events);
        assert_eq!(result(&mut happened).await, Ok(Vec::new()));
    }
}
