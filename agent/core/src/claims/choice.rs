//! Who serves a prefix for this client, and who is kept ready: a pure function of what is known of the candidates.
//!
//! - The best by rank that is there serves; whoever serves stays while it is there, unless one that ranks before it is.
//! - Who failed is returned to after a hold: a short one where somebody configured the preference (a longer prefix, a priority, preempting), a long one among equals.
//! - Nobody moves away from a dead one but to one that has proven, since the silence began, that it is there: a client whose own link is out moves nothing.

use super::{
    ClaimsConfig,
    pulse::{Need, Pulse},
    rank::Candidate,
};
use crate::time::BootTime;

/// What is known of a candidate, in the order of rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) candidate: Candidate,
    pub(super) pulse: &'a Pulse,
    /// It said that it goes.
    pub(super) is_leaving: bool,
    /// It was dead, left or restarted, and has not served since.
    pub(super) has_failed: bool,
}

/// Places in the list of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) active: Option<usize>,
    pub(super) standby: Option<usize>,
    /// Of every candidate.
    pub(super) needs: Vec<Need>,
    /// When a hold ends: then it is to be decided again.
    pub(super) again_at: Option<BootTime>,
}

/// With the active one in doubt, at most so many others are asked whether they are there.
const MAX_PROOFS: usize = 4;

/// Decides for a prefix that is in use.
pub(super) fn decide(
    ordered: &[Standing<'_>],
    active: Option<usize>,
    config: &ClaimsConfig,
    now: BootTime,
) -> Decision {
    let holds = ordered.iter().map(|standing| hold_ends(standing, active.map(|a| &ordered[a]), config));
    let holds: Vec<Option<BootTime>> = holds.collect();
    let active = match active {
        None => first(ordered),
        Some(active) => Some(successor(ordered, active, &holds, now).unwrap_or(active)),
    };
    let standby = standby(ordered, active);
    let better = &holds[..active.unwrap_or(0)];
    Decision {
        needs: needs(ordered, active, standby),
        again_at: better.iter().flatten().copied().filter(|at| *at > now).min(),
        active,
        standby,
    }
}

/// Decides for a prefix that nobody uses: nobody is asked anything.
pub(super) fn decide_idle(ordered: &[Standing<'_>], active: Option<usize>) -> Decision {
    let active = active.filter(|active| !ordered[*active].is_leaving).or_else(|| first(ordered));
    Decision { active, standby: None, needs: vec![Need::None; ordered.len()], again_at: None }
}

/// Who is there, else who may be, else anybody.
fn first(ordered: &[Standing<'_>]) -> Option<usize> {
    let stays = |standing: &Standing<'_>| !standing.is_leaving;
    let known =
        ordered.iter().position(|standing| stays(standing) && standing.pulse.healthy_since().is_some());
    let possible = || ordered.iter().position(|standing| stays(standing) && !standing.pulse.is_dead());
    let any = || ordered.iter().position(stays).or((!ordered.is_empty()).then_some(0));
    known.or_else(possible).or_else(any)
}

/// Who serves in the place of the active one, if somebody is to.
fn successor(
    ordered: &[Standing<'_>],
    active: usize,
    holds: &[Option<BootTime>],
    now: BootTime,
) -> Option<usize> {
    let serving = &ordered[active];
    let others = (0..ordered.len()).filter(|place| *place != active && !ordered[*place].is_leaving);
    if serving.pulse.is_dead() {
        return others.into_iter().find(|place| ordered[*place].pulse.answers_where_silent(serving.pulse));
    }
    if serving.is_leaving {
        return others.into_iter().find(|place| ordered[*place].pulse.healthy_since().is_some());
    }
    let is_settled = is_rank_known(ordered, active);
    let mut better = others.into_iter().take_while(|place| *place < active);
    better.find(|place| {
        let is_preferred = ordered[*place].candidate.is_preferred_to(&serving.candidate);
        (is_preferred || is_settled) && holds[*place].is_some_and(|at| at <= now)
    })
}

/// Whether all that are configured alike have told how long they are up: or the rank is not the last word.
fn is_rank_known(ordered: &[Standing<'_>], active: usize) -> bool {
    let active = &ordered[active].candidate;
    let alike = ordered.iter().filter(|standing| {
        !standing.candidate.is_preferred_to(active) && !active.is_preferred_to(&standing.candidate)
    });
    alike.filter(|standing| !standing.pulse.is_dead()).all(|standing| standing.candidate.up_since.is_some())
}

/// When it may be moved to from one that is there. `None`: it is not known to be there.
fn hold_ends(
    standing: &Standing<'_>,
    active: Option<&Standing<'_>>,
    config: &ClaimsConfig,
) -> Option<BootTime> {
    let healthy_since = standing.pulse.healthy_since()?;
    let is_preferred = active.is_some_and(|active| standing.candidate.is_preferred_to(&active.candidate));
    Some(match (standing.has_failed, is_preferred) {
        (false, _) => healthy_since,
        (true, true) => healthy_since + config.preferred_hold,
        (true, false) => healthy_since + config.return_hold,
    })
}

/// Who is kept ready.
fn standby(ordered: &[Standing<'_>], active: Option<usize>) -> Option<usize> {
    let mut others = (0..ordered.len()).filter(|place| Some(*place) != active && !ordered[*place].is_leaving);
    let mut possible = others.clone().filter(|place| !ordered[*place].pulse.is_dead());
    possible.next().or_else(|| others.next())
}

fn needs(ordered: &[Standing<'_>], active: Option<usize>, standby: Option<usize>) -> Vec<Need> {
    let is_in_doubt = active
        .is_some_and(|active| ordered[active].pulse.doubted_since().is_some() || ordered[active].is_leaving);
    // Those that are there for all that is known come first.
    let mut proofs: Vec<usize> = (0..ordered.len()).filter(|place| Some(*place) != active).collect();
    proofs.retain(|_| is_in_doubt);
    proofs.sort_by_key(|place| (ordered[*place].is_leaving, ordered[*place].pulse.is_dead()));
    proofs.truncate(MAX_PROOFS);
    let need = |(place, standing): (usize, &Standing<'_>)| {
        if Some(place) == active {
            return Need::Active;
        }
        if proofs.contains(&place) {
            return Need::Proof;
        }
        // It ranks before the active one, or nobody knows yet whether it does.
        let is_unknown = active.is_some_and(|active| {
            standing.candidate.up_since.is_none()
                && !ordered[active].candidate.is_preferred_to(&standing.candidate)
        });
        // Who said that it goes may be back without our knowing.
        match active.is_some_and(|active| place < active) || is_unknown || standing.is_leaving {
            true => Need::Return,
            false if Some(place) == standby => Need::Standby,
            false => Need::None,
        }
    };
    ordered.iter().enumerate().map(need).collect()
}
