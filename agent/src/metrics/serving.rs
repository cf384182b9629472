//! Where metrics are served. An address that cannot be had is tried again: the node's own in the overlay is there only with the interface.

use super::Listener;
use crate::local::Call;
use agent_core::BootTime;
use std::{io, net::SocketAddr, time::Duration};
use tokio::sync::mpsc;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Serving {
    calls: mpsc::Sender<Call>,
    /// As settings say.
    wanted: Option<SocketAddr>,
    listener: Option<Listener>,
    /// Where nothing listens, and should.
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    text: String,
    is_logged: bool,
    delay: Duration,
    retry_at: BootTime,
}

impl Serving {
    pub(crate) fn new(wanted: Option<SocketAddr>, calls: mpsc::Sender<Call>, now: BootTime) -> Self {
        let mut serving = Self { calls, wanted, listener: None, trouble: None };
        serving.retry(now);
        serving
    }

    /// Why metrics are not served, where they should be.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.as_ref().map(|trouble| trouble.text.clone())
    }

    pub(crate) fn due(&self) -> Option<BootTime> {
        self.trouble.as_ref().map(|trouble| trouble.retry_at)
    }

    /// Serves metrics there, or nowhere.
    ///
    /// # Errors
    /// The address cannot be had; then things stay as they are.
    pub(crate) async fn move_to(&mut self, wanted: Option<SocketAddr>, now: BootTime) -> Result<(), String> {
        let Some(address) = wanted else {
            (self.wanted, self.listener, self.trouble) = (None, None, None);
            return Ok(());
        };
        if self.listener.as_ref().is_some_and(|listener| listener.address == address) {
            return Ok(());
        }
        // Nobody can have a port at all addresses while somebody has it at one.
        if let Some(former) = self.listener.take_if(|listener| listener.address.port() == address.port()) {
            former.stop().await;
        }
        match Listener::start(address, self.calls.clone()) {
            Ok(listener) => {
                (self.wanted, self.listener, self.trouble) = (wanted, Some(listener), None);
                Ok(())
            }
            Err(error) => {
                self.retry(now);
                Err(refusal(address, &error))
            }
        }
    }

    /// Tries again what should be and is not.
    pub(crate) fn retry(&mut self, now: BootTime) {
        let Some(address) = self.wanted.filter(|_| self.listener.is_none()) else { return };
        match Listener::start(address, self.calls.clone()) {
            Ok(listener) => (self.listener, self.trouble) = (Some(listener), None),
            Err(error) => self.on_failure(address, &error, now),
        }
    }

    fn on_failure(&mut self, address: SocketAddr, error: &io::Error, now: BootTime) {
        let text = format!("{}; it is tried again", refusal(address, error));
        let before = self.trouble.take();
        let was_logged = before.as_ref().is_some_and(|before| before.is_logged);
        // The interface may be on its way.
        let may_pass = before.is_none() && error.kind() == io::ErrorKind::AddrNotAvailable;
        if !was_logged && !may_pass {
            tracing::warn!("{text}");
        }
        let delay = before.map_or(FIRST_DELAY, |before| (2 * before.delay).min(MAX_DELAY));
        let is_logged = was_logged || !may_pass;
        self.trouble = Some(Trouble { text, is_logged, delay, retry_at: now + delay });
    }
}

fn refusal(address: SocketAddr, error: &io::Error) -> String {
    format!(
        "metrics cannot be served at {address} ({error}): choose another address with `agent set --metrics-listen`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn at(seconds: u64) -> BootTime {
        BootTime::from_duration(Duration::from_secs(seconds))
    }

    /// A port of this machine that somebody has.
    fn taken() -> (TcpListener, SocketAddr) {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = holder.local_addr().unwrap();
        (holder, address)
    }

    fn free() -> SocketAddr {
        taken().1
    }

    fn serving(wanted: Option<SocketAddr>) -> Serving {
        Serving::new(wanted, mpsc::channel(1).0, at(0))
    }

    fn is_served(address: SocketAddr) -> bool {
        TcpStream::connect(address).is_ok()
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_yet_is_tried_ever_more_rarely_until_it_can() {
        let (holder, address) = taken();
        let mut serving = serving(Some(address));
        assert!(serving.trouble().is_some_and(|text| text.contains(&address.to_string())));
        let mut now = at(0);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let due = serving.due().unwrap();
            assert_eq!(due.since(now), Duration::from_secs(seconds));
            now = due;
            serving.retry(now);
        }
        drop(holder);
        serving.retry(now);
        assert!(is_served(address));
        assert_eq!((serving.trouble(), serving.due()), (None, None));
    }

    #[tokio::test]
    async fn off_ends_the_trouble_and_the_tries() {
        let (_holder, address) = taken();
        let mut serving = serving(Some(address));
        serving.move_to(None, at(1)).await.unwrap();
        assert_eq!((serving.trouble(), serving.due()), (None, None));
        serving.retry(at(100));
        assert_eq!(serving.trouble(), None);
    }

    #[tokio::test]
    async fn one_address_of_a_port_becomes_all_of_them_and_back() {
        let local = free();
        let mut serving = serving(Some(local));
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, local.port()));
        let other = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), local.port()));
        assert!(is_served(local) && !is_served(other));
        serving.move_to(Some(everywhere), at(1)).await.unwrap();
        assert!(is_served(local) && is_served(other));
        serving.move_to(Some(local), at(2)).await.unwrap();
        assert!(is_served(local) && !is_served(other));
    }

    #[tokio::test]
    async fn what_cannot_be_had_leaves_what_was_in_place_even_on_the_same_port() {
        let local = free();
        let mut serving = serving(Some(local));
        let foreign = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), local.port()));
        let (_holder, held) = taken();
        for address in [foreign, held] {
            let refused = serving.move_to(Some(address), at(1)).await.unwrap_err();
            assert!(refused.contains(&address.to_string()), "{refused}");
            assert!(is_served(local));
            assert_eq!(serving.trouble(), None);
        }
    }

    #[tokio::test]
    async fn another_address_ends_the_trouble_with_the_first() {
        let (_holder, address) = taken();
        let mut serving = serving(Some(address));
        let other = free();
        serving.move_to(Some(other), at(1)).await.unwrap();
        assert!(is_served(other));
        assert_eq!(serving.trouble(), None);
    }
}
