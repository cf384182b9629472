//! Which machine answers at which address: a server's own, another one in its place, or, behind a balancer, each that lives in turn.

use crate::{members, world::World};
use std::{collections::BTreeMap, net::SocketAddr};

#[derive(Debug)]
pub(crate) struct Routes {
    own: BTreeMap<SocketAddr, usize>,
    /// All servers are known by the balancer's address alone.
    is_balanced: bool,
    turn: usize,
}

impl Routes {
    pub(crate) fn new(servers: usize, is_balanced: bool) -> Self {
        let own = (0..servers).map(|at| (members::server_addr(at), at)).collect();
        Self { own, is_balanced, turn: 0 }
    }

    /// At which address agents look for this server.
    pub(crate) fn addr_of(&self, server: usize) -> SocketAddr {
        match self.is_balanced {
            true => members::balancer_addr(),
            false => members::server_addr(server),
        }
    }

    pub(crate) fn is_balanced(&self) -> bool {
        self.is_balanced
    }

    pub(crate) fn set(&mut self, addr: SocketAddr, to: usize) {
        self.own.insert(addr, to);
    }

    /// Who has the address now, for a connection with `server`: a balancer keeps to the server that it chose.
    pub(crate) fn now_at(&self, addr: SocketAddr, server: usize) -> Option<usize> {
        match addr == members::balancer_addr() {
            true => Some(server),
            false => self.own.get(&addr).copied(),
        }
    }

    pub(crate) fn leads_to(&self, addr: SocketAddr, server: usize) -> bool {
        self.now_at(addr, server) == Some(server)
    }
}

impl World {
    /// The machine that a new connection to this address reaches. A balancer sees processes that have ended, and no others.
    pub(crate) fn choose_machine(&mut self, addr: SocketAddr) -> Option<usize> {
        if addr != members::balancer_addr() {
            return self.routes.own.get(&addr).copied();
        }
        let count = self.servers.len();
        let mut turns = (1..=count).map(|step| (self.routes.turn + step) % count);
        let chosen = turns.find(|server| self.servers[*server].is_alive()).unwrap_or(self.routes.turn);
        self.routes.turn = chosen;
        Some(chosen)
    }
}
