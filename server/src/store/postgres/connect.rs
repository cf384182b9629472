//! Connections: to whichever of the hosts takes writes. They are tried almost at once, the one that last did first: a host that is a black hole costs
//! a head start and no timeout. Every session has Postgres's own limits, so that a server that hangs holds no lock for long.

use crate::store::{
    CALL_TIMEOUT, HostRole, HostState, InvalidDatabaseUrl, StoreError,
    postgres::{error::PgError, target::Target, tls},
};
use futures_util::{
    future::join_all,
    stream::{FuturesUnordered, StreamExt},
};
use std::{ops::Deref, time::Duration};
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, SimpleQueryMessage, Socket, tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// In Postgres, milliseconds: below CALL_TIMEOUT, so that it gives up first and says what it waited for.
const SESSION_SETTINGS: &str = "SET statement_timeout = 4500; SET lock_timeout = 4000; \
                                SET idle_in_transaction_session_timeout = 5000; SHOW transaction_read_only";
/// How long a host is tried alone before the next one is tried too.
const HEAD_START: Duration = Duration::from_millis(200);
/// From the first packet to a session that takes writes. Below CALL_TIMEOUT, so that each host's reason is told.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

pub(crate) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// The hosts of one database, of which one takes writes.
pub(crate) struct Hosts {
    pub(crate) location: String,
    each: Vec<Host>,
    connector: MakeRustlsConnect,
    primary: watch::Sender<Primary>,
}

struct Host {
    name: String,
    config: Config,
}

/// Where connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Primary {
    /// `None`: nobody has answered yet.
    host: Option<usize>,
    /// Connections of an older one are not used again.
    generation: u64,
}

/// A connection, its host, and when it was made.
pub(crate) struct Connected {
    pub(crate) client: Client,
    host: usize,
    generation: u64,
}

impl Deref for Connected {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Hosts {
    /// # Errors
    /// What the URL says of TLS cannot be done.
    pub(crate) fn new(target: &Target) -> Result<Self, StoreError> {
        let location = target.to_string();
        let connector = tls::connector(&target.tls, &location)?;
        let each = target.each().map_err(|error: InvalidDatabaseUrl| StoreError::failed(&location, error))?;
        let each = each.into_iter().map(|(name, config)| Host { name, config }).collect();
        Ok(Self {
            location,
            each,
            connector,
            primary: watch::Sender::new(Primary { host: None, generation: 0 }),
        })
    }

    pub(crate) fn are_several(&self) -> bool {
        self.each.len() > 1
    }

    /// The host that connections go to.
    pub(crate) fn current(&self) -> Option<String> {
        self.primary.borrow().host.map(|host| self.each[host].name.clone())
    }

    /// What each host is just now.
    pub(crate) async fn probe(&self) -> Vec<HostState> {
        let attempts = join_all((0..self.each.len()).map(|host| self.attempt(host))).await;
        let state = |(host, attempt): (usize, Result<_, PgError>)| {
            let (state, reason) = match attempt {
                Ok(_) => (HostRole::TakesWrites, None),
                Err(error) if error.is_read_only() => (HostRole::ReadOnly, None),
                Err(error) => (HostRole::Away, Some(error.to_string())),
            };
            HostState { host: self.each[host].name.clone(), state, reason }
        };
        attempts.into_iter().map(state).collect()
    }

    /// A connection that takes writes, with the driver that the caller polls.
    ///
    /// # Errors
    /// No host gives one; the error says of each why.
    pub(crate) async fn connect(&self) -> Result<(Connected, Driver), StoreError> {
        let mut rest = self.order().into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            attempts.extend(rest.next().map(|host| self.attempt(host)));
            let head_start = if rest.len() == 0 { CALL_TIMEOUT } else { HEAD_START };
            match timeout(head_start, attempts.next()).await {
                Ok(Some((host, Ok((client, driver))))) => {
                    return Ok((self.handle_connected(host, client), driver));
                }
                Ok(Some((host, Err(error)))) => failures.push((host, error)),
                Ok(None) => return Err(self.none(failures)),
                Err(_elapsed) => {}
            }
        }
    }

    /// One whose driver runs as a task, which ends with the client.
    pub(crate) async fn connect_driven(&self) -> Result<Connected, StoreError> {
        let (client, mut driver) = self.connect().await?;
        tokio::spawn(async move {
            // An error reaches whoever uses the client; notices are for nobody.
            while let Some(Ok(AsyncMessage::Notice(_) | _)) = next_message(&mut driver).await {}
        });
        Ok(client)
    }

    fn order(&self) -> Vec<usize> {
        let last = self.primary.borrow().host;
        let others = (0..self.each.len()).filter(|host| Some(*host) != last);
        last.into_iter().chain(others).collect()
    }

    async fn attempt(&self, host: usize) -> (usize, Result<(Client, Driver), PgError>) {
        let attempt = async {
            let (client, mut driver) = self.each[host].config.connect(self.connector.clone()).await?;
            set_up(&client, &mut driver).await?;
            Ok((client, driver))
        };
        (host, timeout(ATTEMPT_TIMEOUT, attempt).await.unwrap_or(Err(PgError::Silent)))
    }

    fn handle_connected(&self, host: usize, client: Client) -> Connected {
        self.primary.send_if_modified(|primary| {
            let has_moved = primary.host.is_some_and(|before| before != host);
            let is_news = primary.host != Some(host);
            primary.host = Some(host);
            primary.generation += u64::from(has_moved);
            is_news
        });
        let Primary { generation, .. } = *self.primary.borrow();
        Connected { client, host, generation }
    }

    /// The error of all hosts together: it passes if any of them may pass.
    fn none(&self, failures: Vec<(usize, PgError)>) -> StoreError {
        let mut failures = failures;
        if failures.len() < 2 {
            let error = failures.pop().map_or(PgError::Silent, |(_, error)| error);
            return error.at(&self.location);
        }
        failures.sort_by_key(|(host, _)| *host);
        let are_read_only = failures.iter().all(|(_, error)| error.is_read_only());
        let may_pass = failures.iter().any(|(_, error)| error.is_passing());
        let reasons = failures.iter().map(|(host, error)| format!("{}: {error}", self.each[*host].name));
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        match (are_read_only, may_pass) {
            (true, _) => StoreError::ReadOnly { location: self.location.clone() },
            (false, true) => StoreError::unavailable(&self.location, reasons),
            (false, false) => StoreError::failed(&self.location, reasons),
        }
    }

    pub(crate) fn is_current(&self, connected: &Connected) -> bool {
        !connected.client.is_closed() && connected.generation == self.primary.borrow().generation
    }

    /// `connected` turned out to be of no use: its siblings are not used again either.
    pub(crate) fn distrust(&self, connected: &Connected) {
        self.primary.send_if_modified(|primary| {
            let is_first = primary.generation == connected.generation;
            primary.generation += u64::from(is_first);
            is_first
        });
    }

    /// Waits until another host than this one takes writes.
    pub(crate) async fn moved_from(&self, host: usize) {
        let mut primary = self.primary.subscribe();
        if primary.wait_for(|primary| primary.host.is_some_and(|now| now != host)).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Connected {
    pub(crate) fn host(&self) -> usize {
        self.host
    }
}

async fn set_up(client: &Client, driver: &mut Driver) -> Result<(), PgError> {
    let mut answer = std::pin::pin!(client.simple_query(SESSION_SETTINGS));
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer?,
            message = next_message(driver) => match message {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(PgError::Closed),
            },
        }
    };
    let is_read_only = answer
        .iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")));
    if is_read_only { Err(PgError::ReadOnly) } else { Ok(()) }
}

pub(crate) async fn next_message(driver: &mut Driver) -> Option<Result<AsyncMessage, tokio_postgres::Error>> {
    std::future::poll_fn(|context| driver.poll_message(context)).await
}
