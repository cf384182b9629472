//! One session as a server holds it.

use crate::atlas::{Atlas, Certificate};
use agent_core::BootTime;
use proto::{
    map::MapVersion,
    session::{MapState, SessionNumber},
    statement::NodeId,
};
use std::{collections::BTreeSet, net::SocketAddr, ops::RangeInclusive, rc::Rc};

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) agent: usize,
    pub(crate) number: SessionNumber,
    pub(crate) since: BootTime,
    pub(crate) serving: Option<Serving>,
    /// Nothing older is told.
    pub(crate) floor: MapVersion,
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Of what it claims exclusively.
    pub(crate) yields: bool,
    pub(crate) heard_at: BootTime,
    pub(crate) drain_told: bool,
    /// Its node was looked at in this version.
    pub(crate) judged: MapVersion,
    /// The newest root that the agent keeps, as it said.
    pub(crate) kept_root: Option<usize>,
    /// The roots and the certificate that it was told.
    pub(crate) roots_told: RangeInclusive<usize>,
    pub(crate) certificate_told: Option<Certificate>,
    /// The servers that live, as it was told.
    pub(crate) servers_told: Vec<usize>,
}

/// What a serving session was told.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) map: Progress,
    pub(crate) presence: Option<BTreeSet<NodeId>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Progress {
    /// Compared as soon as the server is as new as the agent.
    Resuming(MapState),
    Fetching,
    Level(Rc<Atlas>),
}

impl Session {
    /// Of the map that the agent was told in full; the default: of none.
    pub(crate) fn told(&self) -> MapVersion {
        match self.serving.as_ref().map(|serving| &serving.map) {
            Some(Progress::Level(told)) => told.version,
            Some(Progress::Resuming(_) | Progress::Fetching) | None => MapVersion::default(),
        }
    }
}

impl Serving {
    pub(crate) fn resuming(held: MapState) -> Self {
        Self { map: Progress::Resuming(held), presence: None }
    }
}
