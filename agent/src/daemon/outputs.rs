//! Doing what the core's outputs say.

use super::{
    DaemonError,
    driver::{Driver, End, Farewell},
    plane::{Configured, Wanted},
};
use crate::platform::boot_time;
use agent_core::{
    ConnId, Output,
    io::{Closed, Dial},
};
use std::net::IpAddr;

impl Driver<'_> {
    pub(super) async fn do_outputs(&mut self) -> Result<(), DaemonError> {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Resolve(url) => self.world.resolver.resolve(url, self.events.clone()),
                Output::Dial(dial) => self.dial(dial),
                Output::Send { conn, message } => {
                    let said = self.connections.say(conn, message);
                    self.give_up(conn, said);
                }
                Output::Fetch { conn, have } => {
                    let asked = self.connections.fetch(conn, have);
                    self.give_up(conn, asked);
                }
                Output::Close { conn } => self.connections.close(conn),
                Output::Configure { addresses, overlay, served } => {
                    self.configure(addresses, Wanted { overlay, served }).await?;
                }
                Output::Tunnel(command) => self.world.plane.command(command),
                Output::SaveMap => self.save_map(),
                Output::SaveState => self.save_state(),
                Output::Notice(notice) => self.on_notice(notice)?,
            }
        }
        Ok(())
    }

    fn dial(&mut self, dial: Dial) {
        if self.is_ending() {
            return;
        }
        match self.credentials() {
            Some(credentials) => {
                tracing::debug!(conn = dial.conn.0, url = %dial.url, addr = %dial.addr, "dialling");
                self.connections.dial(dial, credentials);
            }
            None => {
                let why = Closed::NotOurs("no cluster is known to trust; give a setup key".into());
                self.agent.handle_closed(dial.conn, &why, boot_time());
            }
        }
    }

    /// Ends a connection that cannot take what it should.
    fn give_up(&mut self, conn: ConnId, result: Result<(), Closed>) {
        if let Err(why) = result {
            self.connections.close(conn);
            self.agent.handle_closed(conn, &why, boot_time());
        }
    }

    async fn configure(&mut self, addresses: Vec<IpAddr>, wanted: Wanted) -> Result<(), DaemonError> {
        let masquerade = self.settings.masquerade;
        match self.world.plane.configure(addresses, wanted, masquerade).await? {
            // They may be served at an address of the interface.
            Configured::Done => self.world.metrics.retry(boot_time()),
            Configured::NeedsRestart => {
                tracing::info!("the node's addresses are others now; the tunnel is made again");
                self.end(End::RestartAll, Farewell::None);
            }
        }
        Ok(())
    }

    pub(super) fn save_map(&self) {
        match self.agent.has_map() && !self.left {
            true => self.world.disk.save_map(self.agent.map_cache()),
            false => self.world.disk.remove_map(),
        }
    }

    pub(super) fn save_state(&mut self) {
        // Of a network that was left, or that never took us in, nothing is kept.
        let state = self.world.state.clone().counted(self.agent.boot());
        self.world.state = match self.agent.is_enrolled() && !self.left {
            true => state.with(self.agent.saved()),
            false => state.left(),
        };
        self.world.disk.save_state(self.world.state.clone());
    }

    pub(super) fn forget_state(&mut self) {
        self.left = true;
        self.save_state();
    }
}
