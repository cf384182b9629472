//! Two servers with one id: a machine or a data directory was copied. Whoever finds the lease of its id held by another incarnation waits: a process that is over
//! renews no lease, so it ends. One that is renewed meanwhile belongs to a server that lives.

use crate::store::{LiveServer, ServerRow};
use proto::server_url::ServerUrl;
use std::time::{Duration, Instant};

/// A lease that ends so much later than it did was renewed. Its end is told in the database's time, and read over a connection that may be slow.
const RENEWED_BY: Duration = Duration::from_millis(600);

/// What the other's lease looked like when it was first found.
#[derive(Debug, Default)]
pub(super) struct Contest {
    found: Option<(LiveServer, Instant)>,
}

impl Contest {
    /// Returns whether the other one lives.
    pub(super) fn handle_taken(&mut self, other: &LiveServer, now: Instant) -> bool {
        match &self.found {
            Some((before, at)) if before.server.incarnation == other.server.incarnation => {
                let expected = before.lease_remaining.saturating_sub(now.duration_since(*at));
                other.lease_remaining > expected + RENEWED_BY
            }
            Some(_) | None => {
                self.found = Some((other.clone(), now));
                false
            }
        }
    }

    pub(super) fn is_new(&self) -> bool {
        self.found.is_none()
    }
}

/// What happened, and what to do about it.
pub(super) fn verdict(me: &ServerRow, other: &ServerRow) -> String {
    let place = |row: &ServerRow| {
        let urls: Vec<_> = row.urls.iter().map(ServerUrl::to_string).collect();
        format!("{:?} on host {:?} ({})", row.name, row.host, urls.join(","))
    };
    format!(
        "two servers have the id {}: {}, which serves, and this one, {}; one is a copy of the other: stop this one, remove the file server-id \
         in its data directory, and start it again",
        me.id,
        place(other),
        place(me)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lease::tests::row, store::Incarnation};

    const LEASE: Duration = Duration::from_secs(10);

    fn other(remaining: Duration) -> LiveServer {
        let server = ServerRow { incarnation: Incarnation([2; 16]), ..row(1, "other:1") };
        LiveServer { server, lease_remaining: remaining }
    }

    #[test]
    fn a_lease_that_only_runs_out_is_nobodys() {
        let (mut contest, start) = (Contest::default(), Instant::now());
        for passed in (0..10).map(Duration::from_secs) {
            assert!(!contest.handle_taken(&other(LEASE - passed), start + passed));
        }
    }

    #[test]
    fn a_lease_that_is_renewed_is_a_living_servers() {
        let (mut contest, start) = (Contest::default(), Instant::now());
        assert!(!contest.handle_taken(&other(LEASE - Duration::from_secs(1)), start));
        assert!(contest.handle_taken(&other(LEASE), start + Duration::from_secs(1)));
    }

    #[test]
    fn the_verdict_names_both_and_says_what_to_do() {
        let verdict = verdict(&row(1, "me:1"), &other(LEASE).server);
        for word in ["me:1", "other:1", "server-id", &row(1, "me:1").id.to_string()] {
            assert!(verdict.contains(word), "{verdict}");
        }
    }
}
