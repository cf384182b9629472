//! How this node itself stands: its own certificate, which servers renew while they serve it, and its wall clock beside the servers' time. What a person must know is
//! in the status, and in the log once.

use super::Agent;
use crate::{
    status::{Certificate, CertificateState},
    time::BootTime,
    trusted_time::Source,
};
use proto::{statement::Membership, time::UnixTime};
use std::time::Duration;

/// An end that is nearer is shown, or a third of the certificate's life if that is shorter.
const SHOWN_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// A wall clock that is off by more is shown ..
const CLOCK_OFF_S: u64 = 60;
/// .. until it is off by less.
const CLOCK_RIGHT_S: u64 = 50;
/// What is shown stays while it is wrong by less than this part: each look at two clocks rounds anew, and drift is slow.
const CLOCK_SHOWN_PART: u64 = 10;

/// What the log was told last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standing {
    certificate: CertificateState,
    /// So far is the clock ahead in what is shown, seconds; `None` is nothing to show.
    clock_ahead: Option<i64>,
}

impl Agent {
    /// Looks at the own certificate and clock; tells the log what changed.
    pub(super) fn judge_own(&mut self) {
        let certificate = self.own_certificate_status(self.now);
        if certificate.state != self.standing.certificate {
            let before = std::mem::replace(&mut self.standing.certificate, certificate.state);
            let by = match self.time.source(self.now) {
                Some(Source::Told) | None => "the servers' time",
                Some(Source::WallClock { .. }) => "this machine's clock, as no server has told the time",
                Some(Source::Signature { .. }) => {
                    "the newest certificate, as this machine's clock is behind it"
                }
            };
            match (before, certificate.state) {
                (_, CertificateState::Ending) => {
                    tracing::warn!(
                        ends_in_s = certificate.ends_in_seconds,
                        by,
                        "no server has renewed this node's membership certificate; peers end its tunnels when it ends"
                    );
                }
                (_, CertificateState::Ended) => {
                    tracing::warn!(
                        by,
                        "this node's membership certificate has ended: peers refuse its tunnels until a server renews it"
                    );
                }
                (CertificateState::Ending | CertificateState::Ended, CertificateState::Good) => {
                    tracing::info!("this node's membership certificate is good again")
                }
                (_, CertificateState::None)
                | (CertificateState::None | CertificateState::Good, CertificateState::Good) => {}
            }
        }
        let off = self.time.wall_ahead(self.now);
        let shown = clock_shown(self.standing.clock_ahead, off);
        match (std::mem::replace(&mut self.standing.clock_ahead, shown), shown) {
            (None, Some(off)) => {
                tracing::warn!(ahead_s = off, "this machine's clock is not the servers'; theirs is used")
            }
            (Some(_), None) => tracing::info!("this machine's clock is right again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// When the own certificate is to be looked at again.
    pub(super) fn own_deadline(&self, time: UnixTime) -> Option<Duration> {
        let (_, own) = self.membership.as_ref()?;
        let end = own.not_after?;
        let shown_at = UnixTime(end.0.saturating_sub(shown_before(own).as_secs()));
        [shown_at, end].into_iter().filter(|at| *at > time).map(|at| at.since(time)).min()
    }

    pub(super) fn own_certificate_status(&self, now: BootTime) -> Certificate {
        let Some((_, own)) = &self.membership else { return Certificate::default() };
        let left = own.not_after.zip(self.time.at(now)).map(|(end, time)| end.0 as i64 - time.0 as i64);
        let shown_before_s = shown_before(own).as_secs() as i64;
        Certificate {
            state: match left {
                Some(..=0) => CertificateState::Ended,
                Some(left) if left <= shown_before_s => CertificateState::Ending,
                Some(_) | None => CertificateState::Good,
            },
            not_after: own.not_after.map(|end| end.0),
            ends_in_seconds: left,
        }
    }

    /// What is wrong with this node, and what to do.
    pub(super) fn warnings(&self, now: BootTime) -> Vec<String> {
        let certificate = self.own_certificate_status(now);
        let is_served = self.control.serving().is_some();
        let cure = match is_served {
            true => {
                "the server that serves this node has not renewed it: look at `server status`, its database may be away"
            }
            false => "it is renewed as soon as a server can be reached",
        };
        let span = |seconds: Option<i64>| in_words(seconds.unwrap_or_default().unsigned_abs());
        let by = self.judged_by(now);
        let of_certificate = match certificate.state {
            CertificateState::None | CertificateState::Good => None,
            CertificateState::Ending => Some(format!(
                "the membership certificate ends in {}, and then peers end this node's tunnels; {cure}{by}",
                span(certificate.ends_in_seconds)
            )),
            CertificateState::Ended => Some(format!(
                "the membership certificate ended {} ago: peers refuse this node's tunnels; {cure}{by}",
                span(certificate.ends_in_seconds)
            )),
        };
        let of_clock = self.standing.clock_ahead.map(|off| {
            let direction = if off > 0 { "ahead of" } else { "behind" };
            let off = in_words(off.unsigned_abs());
            format!("this machine's clock is {off} {direction} the servers': set it right; certificates are judged by the servers' time")
        });
        let mut ended = 0;
        if let Some(time) = self.time.at(now) {
            ended = self
                .netmap
                .members()
                .filter(|(_, m)| m.membership.not_after.is_some_and(|end| time >= end))
                .count();
        }
        let of_peers = (ended > 0).then(|| {
            format!("the membership certificates of {ended} peers have ended, and their tunnels with them: no server has renewed them, or told us{by}")
        });
        [of_certificate, of_peers, of_clock.or(self.of_backward_clock(now))].into_iter().flatten().collect()
    }

    /// Where no server told the time, a wrong clock may be all that is wrong.
    fn judged_by(&self, now: BootTime) -> String {
        match self.time.source(now) {
            Some(Source::WallClock { since_signed: Some(since) }) => format!(
                ". No server has told the time yet: this goes by this machine's clock, {} after the newest certificate. If that is wrong, set the clock",
                in_words(since.as_secs())
            ),
            Some(Source::WallClock { since_signed: None }) => {
                ". No server has told the time yet: this goes by this machine's clock. If that is wrong, set it".to_owned()
            }
            Some(Source::Told | Source::Signature { .. }) | None => String::new(),
        }
    }

    /// No server told the time, but the clock proves itself wrong.
    fn of_backward_clock(&self, now: BootTime) -> Option<String> {
        match self.time.source(now)? {
            Source::Signature { wall_behind } if wall_behind.as_secs() > CLOCK_OFF_S => Some(format!(
                "this machine's clock is {} behind the newest certificate: set it right; until a server tells the time, certificates are judged as of that one",
                in_words(wall_behind.as_secs())
            )),
            Source::Signature { .. } | Source::WallClock { .. } | Source::Told => None,
        }
    }
}

/// What to show of a clock that is `off`, after what was shown `before`.
fn clock_shown(before: Option<i64>, off: Option<i64>) -> Option<i64> {
    let limit = if before.is_some() { CLOCK_RIGHT_S } else { CLOCK_OFF_S };
    let off = off.filter(|off| off.unsigned_abs() > limit)?;
    let holds = |before: &i64| before.abs_diff(off) <= before.unsigned_abs() / CLOCK_SHOWN_PART;
    before.filter(holds).or(Some(off))
}

fn shown_before(membership: &Membership) -> Duration {
    let life = membership.not_after.map(|end| end.since(membership.issued_at));
    life.map_or(SHOWN_BEFORE, |life| SHOWN_BEFORE.min(life / 3))
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} d", seconds / 86_400),
    }
}
