//! Streaming replication: a second Postgres that follows a first one, and takes its place.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{PORT, Postgres, USER};
use crate::topology::Host;
use crate::wait::wait_until;

const LEVEL_TIMEOUT: Duration = Duration::from_secs(20);

impl Postgres {
    /// Copies `primary` and follows it, on another host; returns when it is level.
    pub fn standby_of(primary: &Self, host: Host, address: Ipv4Addr, directory: &Path) -> Result<Self> {
        let mut standby = Self::new(host, address, directory)?;
        standby.follow(primary)?;
        Ok(standby)
    }

    /// Throws its data away, copies `primary` and follows it: what is done with a primary that was replaced.
    pub fn follow(&mut self, primary: &Self) -> Result<()> {
        if self.data().exists() {
            std::fs::remove_dir_all(self.data()).context("cannot remove the data directory")?;
        }
        let output = self
            .as_daemon("pg_basebackup")
            .args(["-h", &primary.address.to_string(), "-p", &PORT.to_string(), "-U", USER])
            .args(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-D"])
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .context("cannot run pg_basebackup")?;
        if !output.status.success() {
            bail!("pg_basebackup failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        self.wait_for_nobody()?;
        self.run()?;
        primary.wait_level(1)
    }

    /// Waits for `standbys` that follow this one and have replayed all there is.
    pub fn wait_level(&self, standbys: usize) -> Result<()> {
        let count = "select count(*) from pg_stat_replication where replay_lsn = pg_current_wal_lsn()";
        wait_until("the standby is level", LEVEL_TIMEOUT, || {
            Ok((self.sql(count)?.parse::<usize>()? >= standbys).then_some(()))
        })
    }

    /// From now on a commit waits for a standby: none is lost with this machine.
    pub fn replicate_synchronously(&self) -> Result<()> {
        self.sql("alter system set synchronous_standby_names = '*'")?;
        self.sql("select pg_reload_conf()")?;
        wait_until("the standby is synchronous", LEVEL_TIMEOUT, || {
            let found = self.sql("select count(*) from pg_stat_replication where sync_state = 'sync'")?;
            Ok((found != "0").then_some(()))
        })
    }

    /// Makes a standby the primary; returns when it takes writes.
    pub fn promote(&self) -> Result<Instant> {
        self.sql("select pg_promote(true, 30)")?;
        Ok(Instant::now())
    }

    /// A standby goes on hearing of changes and stops showing them.
    pub fn pause_replay(&self) -> Result<()> {
        self.sql("select pg_wal_replay_pause()")?;
        wait_until("the replay is paused", LEVEL_TIMEOUT, || {
            Ok((self.sql("select pg_get_wal_replay_pause_state()")? == "paused").then_some(()))
        })
    }

    pub fn resume_replay(&self) -> Result<()> {
        self.sql("select pg_wal_replay_resume()").map(drop)
    }

    /// Takes out of the copied settings what the primary waits for: alone, this one would wait for ever.
    fn wait_for_nobody(&self) -> Result<()> {
        let path = self.data().join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&path).context("a copy has its settings")?;
        let kept = text.lines().filter(|line| !line.starts_with("synchronous_standby_names"));
        std::fs::write(&path, kept.map(|line| format!("{line}\n")).collect::<String>())?;
        Ok(())
    }
}
