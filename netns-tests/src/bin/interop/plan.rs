//! Which pairs there are, and the table of what became of them.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::figures::ms;

use crate::Outcome;
use crate::course::Course;
use crate::end::Underlay;

pub(crate) const KERNEL: &str = "kernel";
/// As `Program::others` calls them, and the kernel.
const OTHERS: [&str; 3] = ["wireguard-go", BORINGTUN, KERNEL];
const BORINGTUN: &str = "boringtun-cli";
const KEEPALIVE_SECONDS: u16 = 25;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) other: &'static str,
    pub(crate) course: Course,
    pub(crate) ours_begins: bool,
    pub(crate) underlay: Underlay,
    pub(crate) preshared: bool,
    pub(crate) keepalive: Option<u16>,
}

/// Each begins over each family, with a preshared key and without.
pub(crate) fn all() -> Vec<Plan> {
    use Underlay::{V4, V6};
    let busy = [(true, V4, false), (true, V6, true), (false, V4, true), (false, V6, false)];
    let quiet = [(true, V4, true), (false, V6, false)];
    let mut plans = Vec::new();
    for other in OTHERS {
        let courses = [(Course::Busy, &busy[..]), (Course::Silent, &quiet[..]), (Course::Kept, &quiet[..])];
        for (course, ways) in courses {
            for &(ours_begins, underlay, preshared) in ways {
                let keepalive = (course == Course::Kept).then_some(KEEPALIVE_SECONDS);
                plans.push(Plan { other, course, ours_begins, underlay, preshared, keepalive });
            }
        }
    }
    plans
}

/// Those whose name contains one of `only`; a part that none contains is a mistake.
pub(crate) fn wanted(only: &[String]) -> Result<Vec<Plan>> {
    let mut plans = all();
    for part in only {
        let is_known = plans.iter().any(|plan| plan.name().contains(part));
        ensure!(is_known, "no pair's name contains {part:?}; they are\n{}", names(&plans));
    }
    plans.retain(|plan| only.is_empty() || only.iter().any(|part| plan.name().contains(part)));
    Ok(plans)
}

fn names(plans: &[Plan]) -> String {
    plans.iter().map(Plan::name).collect::<Vec<_>>().join("\n")
}

impl Plan {
    pub(crate) fn name(&self) -> String {
        let begins = if self.ours_begins { "ours begins" } else { "theirs begins" };
        let underlay = match self.underlay {
            Underlay::V4 => "IPv4",
            Underlay::V6 => "IPv6",
        };
        let course = match self.course {
            Course::Busy => "busy",
            Course::Silent => "silent",
            Course::Kept => "keepalive",
        };
        let preshared = if self.preshared { "preshared key" } else { "no preshared key" };
        format!("{}, {course}, {begins}, {underlay}, {preshared}", self.other)
    }

    /// boringtun begins no handshake for the sake of keepalives.
    pub(crate) fn renews_when_idle(&self) -> bool {
        self.other != BORINGTUN
    }

    /// Of an emulated processor not too much is asked.
    pub(crate) fn bulk_bytes(&self) -> usize {
        if self.other == KERNEL { 4 << 20 } else { 32 << 20 }
    }

    pub(crate) fn ping_interval(&self) -> Duration {
        Duration::from_millis(if self.other == KERNEL { 20 } else { 5 })
    }
}

/// As a pair ends.
pub(crate) fn line(outcome: &Outcome) -> String {
    let became = outcome.failure.as_deref().unwrap_or("ok");
    format!("{}: {became} ({})", outcome.plan.name(), ms(outcome.took))
}

pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from("| pair | shown | pings lost | rekeys | |\n|---|---|---|---|---|\n");
    for outcome in outcomes {
        let Outcome { plan, shown, failure, took: _ } = outcome;
        let became = failure.as_ref().map_or_else(|| "ok".to_owned(), |failure| format!("FAILED: {failure}"));
        let notes = shown.notes.join("; ");
        let pings = format!("{} of {}", shown.lost, shown.sent);
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {notes} | {pings} | {} | {became} |", plan.name(), shown.rekeys);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::course::Shown;

    #[test]
    fn every_other_begins_and_is_begun_with_over_both_families_with_and_without_a_key() {
        for other in OTHERS {
            let busy: Vec<Plan> =
                all().into_iter().filter(|plan| plan.other == other && plan.course == Course::Busy).collect();
            for ours_begins in [true, false] {
                let of: Vec<&Plan> = busy.iter().filter(|plan| plan.ours_begins == ours_begins).collect();
                assert!(of.iter().any(|plan| plan.preshared) && of.iter().any(|plan| !plan.preshared));
                assert!(of.iter().any(|plan| plan.underlay == Underlay::V4));
                assert!(of.iter().any(|plan| plan.underlay == Underlay::V6));
            }
        }
    }

    #[test]
    fn pairs_are_chosen_by_parts_of_their_names_and_an_unknown_part_is_refused() {
        let wanted_of = |parts: &[&str]| wanted(&parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(wanted_of(&[]).unwrap().len(), all().len());
        assert!(wanted_of(&["kernel, busy"]).unwrap().iter().all(|plan| plan.other == KERNEL));
        assert!(wanted_of(&["kernel", "kernle"]).unwrap_err().to_string().contains("kernle"));
    }

    #[test]
    fn the_table_says_what_failed() {
        let mut outcome = Outcome {
            plan: all().swap_remove(0),
            shown: Shown { notes: vec!["a".into(), "b".into()], lost: 1, sent: 9, rekeys: 2 },
            failure: None,
            took: Duration::ZERO,
        };
        assert!(table(std::slice::from_ref(&outcome)).contains("| a; b | 1 of 9 | 2 | ok |"));
        outcome.failure = Some("no answer".into());
        assert!(table(&[outcome]).contains("FAILED: no answer"));
    }
}
