//! Who serves a prefix for this client, and who is kept ready: a pure function of what is known of the candidates.
//!
//! - The best by rank that is there serves; whoever serves stays while it is there, unless one that ranks before it is.
//! - Who failed is returned to after a hold: a short one where somebody configured the preference (a longer prefix, a priority, preempting), a long one among equals.
//! - Who has withdrawn is left like one that goes, as soon as another is known to be there, but it never serves for want of another: if nobody else claims the prefix, nobody serves it.
//! - Nobody moves away from a dead one but to one that has proven, since the silence began, that it is there: a client whose own link is out moves nothing.
//! - Nor from a living one, that goes or is outranked, but to one that has answered since there was a reason to: what is known of a standby may be old.

use super::{
    ClaimsConfig,
    pulse::{Need, Pulse},
    rank::Candidate,
};
use crate::time::BootTime;
use std::time::Duration;

/// What is known of a candidate, in the order of rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) candidate: Candidate,
    pub(super) pulse: &'a Pulse,
    /// It said that it goes.
    pub(super) is_leaving: bool,
    /// It said that it does not serve what it claims now.
    pub(super) is_withdrawn: bool,
    /// It was dead, left or restarted, and has not served since.
    pub(super) has_failed: bool,
}

impl Standing<'_> {
    /// It serves, or would.
    fn stays(&self) -> bool {
        !self.is_leaving && !self.is_withdrawn
    }

    /// Since when it is there and serves. Who is restored is a newcomer, however long it answered before.
    fn there_since(&self) -> Option<BootTime> {
        let healthy_since = self.pulse.healthy_since()?;
        let up_since = self.candidate.up_since.map(|since| since.after(Duration::ZERO));
        Some(healthy_since.max(up_since.unwrap_or(healthy_since)))
    }
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
    /// Since when the active one is to be left although it is there.
    pub(super) leave_since: Option<BootTime>,
}

/// With the active one in doubt, at most so many others are asked whether they are there.
const MAX_PROOFS: usize = 4;

/// Decides for a prefix that is in use, whose active one was to be left since `leave_since` when it was decided last.
pub(super) fn decide(
    ordered: &[Standing<'_>],
    active: Option<usize>,
    leave_since: Option<BootTime>,
    config: &ClaimsConfig,
    now: BootTime,
) -> Decision {
    let holds = ordered.iter().map(|standing| hold_ends(standing, active.map(|a| &ordered[a]), config));
    let holds: Vec<Option<BootTime>> = holds.collect();
    let wanted = active.map_or_else(Vec::new, |active| wanted(ordered, active, &holds, now));
    let is_left = !wanted.is_empty() || active.is_some_and(|active| !ordered[active].stays());
    let leave_since = is_left.then(|| leave_since.unwrap_or(now));
    let kept = active;
    let active = match active {
        None => first(ordered),
        Some(active) => match successor(ordered, active, &wanted, leave_since) {
            None if ordered[active].is_withdrawn && !is_another_possible(ordered, active) => first(ordered),
            successor => successor.or(Some(active)),
        },
    };
    let (wanted, leave_since) = if active == kept { (wanted, leave_since) } else { (Vec::new(), None) };
    let standby = standby(ordered, active);
    let better = &holds[..active.unwrap_or(0)];
    Decision {
        needs: needs(ordered, active, standby, &wanted),
        again_at: better.iter().flatten().copied().filter(|at| *at > now).min(),
        active,
        standby,
        leave_since,
    }
}

/// Decides for a prefix that nobody uses: nobody is asked anything. All that withdrew may be back by now.
pub(super) fn decide_idle(ordered: &[Standing<'_>], active: Option<usize>) -> Decision {
    let stays = |active: &usize| ordered[*active].stays();
    // Whoever uses it next asks again.
    let any = (!ordered.is_empty()).then_some(0);
    let active = active.filter(stays).or_else(|| first(ordered)).or(any);
    let needs = vec![Need::None; ordered.len()];
    Decision { active, standby: None, needs, again_at: None, leave_since: None }
}

/// Who is there, else who may be, else anybody who has not withdrawn.
fn first(ordered: &[Standing<'_>]) -> Option<usize> {
    let place = |is_it: fn(&Standing<'_>) -> bool| ordered.iter().position(is_it);
    place(|standing| standing.stays() && standing.pulse.healthy_since().is_some())
        .or_else(|| place(|standing| standing.stays() && !standing.pulse.is_dead()))
        .or_else(|| place(|standing| standing.stays()))
        .or_else(|| place(|standing| !standing.is_withdrawn))
}

fn is_another_possible(ordered: &[Standing<'_>], active: usize) -> bool {
    let mut others = (0..ordered.len()).filter(|place| *place != active);
    others.any(|place| ordered[place].stays() && !ordered[place].pulse.is_dead())
}

/// Who is to serve in the place of an active one that is there, the best first: as soon as it has answered once more.
fn wanted(ordered: &[Standing<'_>], active: usize, holds: &[Option<BootTime>], now: BootTime) -> Vec<usize> {
    let serving = &ordered[active];
    let others = (0..ordered.len()).filter(|place| *place != active && ordered[*place].stays());
    if serving.pulse.is_dead() {
        return Vec::new();
    }
    if !serving.stays() {
        return others.filter(|place| ordered[*place].pulse.healthy_since().is_some()).collect();
    }
    let is_settled = is_rank_known(ordered, active);
    let better = others.take_while(|place| *place < active);
    let is_wanted = |place: &usize| {
        let is_preferred = ordered[*place].candidate.is_preferred_to(&serving.candidate);
        (is_preferred || is_settled) && holds[*place].is_some_and(|at| at <= now)
    };
    better.filter(is_wanted).collect()
}

/// Who serves in the place of the active one, if somebody is to.
fn successor(
    ordered: &[Standing<'_>],
    active: usize,
    wanted: &[usize],
    leave_since: Option<BootTime>,
) -> Option<usize> {
    let serving = &ordered[active];
    if serving.pulse.is_dead() {
        let mut others = (0..ordered.len()).filter(|place| *place != active && ordered[*place].stays());
        return others.find(|place| ordered[*place].pulse.answers_where_silent(serving.pulse));
    }
    let has_answered = |place: &&usize| ordered[**place].pulse.proven_at() >= leave_since;
    leave_since.and(wanted.iter().find(has_answered).copied())
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
    let there_since = standing.there_since()?;
    let is_preferred = active.is_some_and(|active| standing.candidate.is_preferred_to(&active.candidate));
    Some(match (standing.has_failed, is_preferred) {
        (false, _) => there_since,
        (true, true) => there_since + config.preferred_hold,
        (true, false) => there_since + config.return_hold,
    })
}

/// Who is kept ready.
fn standby(ordered: &[Standing<'_>], active: Option<usize>) -> Option<usize> {
    let mut others = (0..ordered.len()).filter(|place| Some(*place) != active && ordered[*place].stays());
    let mut possible = others.clone().filter(|place| !ordered[*place].pulse.is_dead());
    possible.next().or_else(|| others.next())
}

fn needs(
    ordered: &[Standing<'_>],
    active: Option<usize>,
    standby: Option<usize>,
    wanted: &[usize],
) -> Vec<Need> {
    let is_in_doubt = active
        .is_some_and(|active| ordered[active].pulse.doubted_since().is_some() || !ordered[active].stays());
    // Those that are there for all that is known come first.
    let mut proofs: Vec<usize> = (0..ordered.len()).filter(|place| Some(*place) != active).collect();
    proofs.retain(|_| is_in_doubt);
    proofs.sort_by_key(|place| (!ordered[*place].stays(), ordered[*place].pulse.is_dead()));
    proofs.truncate(MAX_PROOFS);
    proofs.extend(wanted.iter().take(MAX_PROOFS));
    let need = |(place, standing): (usize, &Standing<'_>)| {
        if Some(place) == active {
            return if ordered.len() > 1 { Need::Active } else { Need::Sole };
        }
        if proofs.contains(&place) {
            return Need::Proof;
        }
        // It says itself that it is back; this is for words that were lost.
        if standing.is_withdrawn && active.is_some() {
            return Need::Standby;
        }
        // It ranks before the active one, or nobody knows yet whether it does.
        let is_unknown = active.is_some_and(|active| {
            standing.candidate.up_since.is_none()
                && !ordered[active].candidate.is_preferred_to(&standing.candidate)
        });
        // Who said that it goes may be back without our knowing.
        let is_out = !standing.stays();
        match active.is_some_and(|active| place < active) || is_unknown || is_out {
            true => Need::Return,
            false if Some(place) == standby => Need::Standby,
            false => Need::None,
        }
    };
    ordered.iter().enumerate().map(need).collect()
}
