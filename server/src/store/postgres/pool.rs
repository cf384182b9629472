//! Two pools over the same hosts: a shared one, and a small one for what must not wait behind it (the lease, the log). A call has one deadline for
//! everything: waiting for a connection, making it, and the answer. A connection that did not bring a call to its end is closed, never reused.

use crate::store::{
    CALL_TIMEOUT, StoreError,
    postgres::{
        connect::{Connected, Hosts},
        error::PgError,
    },
};
use deadpool::{
    Runtime,
    managed::{self, Manager, Metrics, PoolError, RecycleError, RecycleResult},
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

/// The lease, the log, and one call more while either hangs.
const RESERVED: usize = 3;
/// What has not answered by then makes us ask whether another host has taken over.
const LATE_AFTER: Duration = Duration::from_millis(700);
const SCOUT_INTERVAL: Duration = Duration::from_millis(500);

type Pool = managed::Pool<Maker>;

/// Which connections a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Shared,
    /// For what a full pool must not hold up.
    Reserved,
}

pub(crate) struct Pools {
    pub(crate) hosts: Arc<Hosts>,
    shared: Pool,
    reserved: Pool,
    late: Notify,
}

/// A connection in use; closed when dropped, unless it was given back.
pub(crate) struct Held(Option<managed::Object<Maker>>);

pub(crate) struct Maker {
    hosts: Arc<Hosts>,
    /// Made before there was a pool.
    first: Mutex<Option<Connected>>,
}

impl Manager for Maker {
    type Type = Connected;
    type Error = StoreError;

    async fn create(&self) -> Result<Connected, StoreError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        match first.filter(|first| self.hosts.is_current(first)) {
            Some(first) => Ok(first),
            None => self.hosts.connect_driven().await,
        }
    }

    async fn recycle(&self, connected: &mut Connected, _: &Metrics) -> RecycleResult<StoreError> {
        match self.hosts.is_current(connected) {
            true => Ok(()),
            false => Err(RecycleError::message("of another time")),
        }
    }
}

impl Pools {
    /// `first`: a connection that is made already.
    pub(crate) fn new(hosts: Arc<Hosts>, size: usize, first: Option<Connected>) -> Result<Self, StoreError> {
        let (shared, reserved) = (pool(&hosts, size, None)?, pool(&hosts, RESERVED, first)?);
        Ok(Self { hosts, shared, reserved, late: Notify::new() })
    }

    /// For who makes one call at a time: one connection does for all.
    pub(crate) fn with_one_lane(
        hosts: Arc<Hosts>,
        size: usize,
        first: Option<Connected>,
    ) -> Result<Self, StoreError> {
        let shared = pool(&hosts, size, first)?;
        Ok(Self { hosts, reserved: shared.clone(), shared, late: Notify::new() })
    }

    fn pool(&self, lane: Lane) -> &Pool {
        match lane {
            Lane::Shared => &self.shared,
            Lane::Reserved => &self.reserved,
        }
    }

    /// Connections of the shared pool in use, and how many there may be.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let status = self.shared.status();
        (status.size.saturating_sub(status.available), status.max_size)
    }

    /// Runs `call` on a connection, within `deadline`.
    pub(crate) async fn run<T>(
        &self,
        lane: Lane,
        deadline: Instant,
        call: impl AsyncFnOnce(&mut Connected) -> Result<T, PgError>,
    ) -> Result<T, StoreError> {
        let (mut held, _) = self.take(lane, deadline.min(Instant::now() + CALL_TIMEOUT)).await?;
        let result = self.on(&mut held, deadline, call).await;
        if result.is_ok() {
            held.give_back();
        }
        result.map_err(|error| error.at(&self.hosts.location))
    }

    /// A connection, and whether it was used before.
    pub(crate) async fn take(&self, lane: Lane, deadline: Instant) -> Result<(Held, bool), StoreError> {
        let pool = self.pool(lane);
        let taken = tokio::select! {
            taken = timeout_at(deadline, pool.get()) => taken,
            never = self.complain() => match never {},
        };
        match taken {
            Ok(Ok(object)) => {
                let is_kept = managed::Object::metrics(&object).recycle_count > 0;
                Ok((Held(Some(object)), is_kept))
            }
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(error)) => Err(StoreError::unavailable(&self.hosts.location, error)),
            Err(_elapsed) => {
                let status = pool.status();
                let are_all_used = status.available == 0 && status.size >= status.max_size;
                let reason = match are_all_used {
                    true => format!("all {} connections to it are in use", status.max_size),
                    false => PgError::Silent.to_string(),
                };
                Err(StoreError::unavailable(&self.hosts.location, reason))
            }
        }
    }

    /// Waits for what runs on the connection. After an error that is the connection's, its siblings are not used again.
    pub(crate) async fn on<T>(
        &self,
        held: &mut Held,
        deadline: Instant,
        call: impl AsyncFnOnce(&mut Connected) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        let Some(object) = held.0.as_mut() else { return Err(PgError::Closed) };
        let connected: &mut Connected = object;
        let host = connected.host();
        let result = tokio::select! {
            result = timeout_at(deadline, call(connected)) => result.unwrap_or(Err(PgError::Silent)),
            () = self.hosts.moved_from(host) => Err(PgError::TakenOver),
            never = self.complain() => match never {},
        };
        if result.as_ref().is_err_and(PgError::is_of_connection) {
            self.hosts.distrust(connected);
        }
        result
    }

    /// While a call waits for long, `scout` looks for another host.
    async fn complain(&self) -> Infallible {
        sleep(LATE_AFTER).await;
        loop {
            self.late.notify_one();
            sleep(SCOUT_INTERVAL).await;
        }
    }

    /// Looks where a connection is to be had when calls wait: one to another host ends those that wait for the old one. Runs for ever.
    pub(crate) async fn scout(&self) {
        loop {
            self.late.notified().await;
            if self.hosts.are_several() {
                // Who waits hears of the failure by itself.
                self.hosts.connect_driven().await.ok();
            }
            sleep(SCOUT_INTERVAL).await;
        }
    }
}

impl Held {
    /// Back into its pool.
    pub(crate) fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(managed::Object::take(object));
        }
    }
}

fn pool(hosts: &Arc<Hosts>, size: usize, first: Option<Connected>) -> Result<Pool, StoreError> {
    let maker = Maker { hosts: hosts.clone(), first: Mutex::new(first) };
    let pool = Pool::builder(maker).max_size(size).runtime(Runtime::Tokio1).build();
    pool.map_err(|error| StoreError::failed(&hosts.location, error))
}
