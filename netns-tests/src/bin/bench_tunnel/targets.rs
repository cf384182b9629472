//! What the tunnel is to reach, what it reached, and which of it is a gate: a floor, or that nothing is sent twice. Ratios and shares
//! count by their medians over the rounds, retransmits by the worst round.

use std::fmt::{Display, Formatter, Result};

use crate::limit::Limits;
use crate::load::{
    BOTH_WAYS, GIGABITS, MEDIAN_MS, PACKETS, PER_CPU, PING, RETRANSMITS, REVERSE, SMALL_UDP, STREAMS, TCP,
    few,
};
use crate::table::{Cost, Table, percentile, spread};
use crate::{FILTER, OURS, RULES};

const GO: &str = "wireguard-go";
const BORINGTUN: &str = "boringtun-cli";

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn is_kept(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
    /// Beyond its gate.
    Broken,
    NotMeasured,
}

struct Target {
    what: String,
    goal: Bound,
    gate: Option<Bound>,
    /// Of each round.
    values: Vec<f64>,
    /// The one of them that counts.
    percentile: usize,
}

impl Target {
    fn new(what: String, goal: Bound, gate: Option<f64>, values: Vec<f64>) -> Self {
        let gate = gate.map(Bound::AtLeast);
        Self { what, goal, gate, values, percentile: 50 }
    }

    fn verdict(&self) -> Verdict {
        let value = percentile(&self.values, self.percentile);
        if self.values.is_empty() {
            Verdict::NotMeasured
        } else if self.goal.is_kept(value) {
            Verdict::Met
        } else if self.gate.is_none_or(|gate| gate.is_kept(value)) {
            Verdict::Missed
        } else {
            Verdict::Broken
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let verdict = match self.verdict() {
            Verdict::Met => "met",
            Verdict::Missed => "not met",
            Verdict::Broken => "NOT MET, AND IT IS A GATE",
            Verdict::NotMeasured => "not measured",
        };
        let gate = self.gate.map_or_else(|| "-".to_owned(), |gate| gate.to_string());
        let Self { what, goal, values, .. } = self;
        write!(f, "| {what} | {goal} | {gate} | {} | {verdict} |", spread(values))
    }
}

/// All of them, of one run.
pub(crate) struct Targets(Vec<Target>);

impl Targets {
    pub(crate) fn of(table: &Table, limits: &Limits<'_>) -> Self {
        let mut all = Vec::new();
        let mut times = |load, unit, other: &str, goal, gate| {
            let what = format!("{load}: {unit}, times {other}");
            all.push(Target::new(what, Bound::AtLeast(goal), gate, table.ratios((load, unit), true, other)));
        };
        for load in [TCP, REVERSE, STREAMS] {
            times(load, GIGABITS, GO, 1.5, Some(1.35));
            times(load, PER_CPU, GO, 1.6, Some(1.5));
        }
        times(BOTH_WAYS, GIGABITS, GO, 1.5, None);
        times(SMALL_UDP, PACKETS, GO, 3.0, Some(2.0));
        times(TCP, GIGABITS, BORINGTUN, 4.0, None);
        let faster = table.ratios((PING, MEDIAN_MS), false, GO);
        let shares = faster.into_iter().map(f64::recip).collect();
        let what = format!("{PING}: {MEDIAN_MS}, times {GO}");
        all.push(Target::new(what, Bound::AtMost(0.6), None, shares));
        for (load, work) in few() {
            let what = format!("{load}: % of the limit");
            all.push(Target::new(what, Bound::AtLeast(85.0), None, limits.reached(load, work)));
        }
        for (load, work) in few() {
            for filter in [FILTER, RULES] {
                let what = format!("{load}: cost of {filter}, %");
                let costs = Cost(table).of(load, work, filter);
                all.push(Target::new(what, Bound::AtMost(3.0), None, costs));
            }
        }
        all.extend([TCP, REVERSE, STREAMS, BOTH_WAYS].map(|load| Target {
            what: format!("{load}: {RETRANSMITS}, the worst round"),
            goal: Bound::AtMost(0.0),
            gate: Some(Bound::AtMost(0.0)),
            values: table.of((load, RETRANSMITS), OURS).to_vec(),
            percentile: 100,
        }));
        Self(all)
    }

    /// The gates that were not kept; in a run of everything, one that nobody measured is not.
    pub(crate) fn broken(&self, is_whole: bool) -> Vec<String> {
        let is_broken = |target: &&Target| match target.verdict() {
            Verdict::Met | Verdict::Missed => false,
            Verdict::Broken => true,
            Verdict::NotMeasured => is_whole && target.gate.is_some(),
        };
        let told = |target: &Target| format!("{} ({})", target.what, spread(&target.values));
        self.0.iter().filter(is_broken).map(told).collect()
    }
}

impl Display for Targets {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "What {OURS} is to reach; a run fails by its gates alone.\n")?;
        writeln!(f, "| | target | gate | measured | |\n|{}", "---|".repeat(5))?;
        self.0.iter().try_for_each(|target| writeln!(f, "{target}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Figure;

    fn targets(ours: f64, retransmits: [f64; 3]) -> Targets {
        let mut table = Table::default();
        for again in retransmits {
            let figures = vec![Figure::more(GIGABITS, ours), Figure::less(RETRANSMITS, again)];
            table.add(OURS, TCP, figures);
            table.add(GO, TCP, vec![Figure::more(GIGABITS, 4.0)]);
        }
        Targets::of(&table, &Limits { table: &table, threads: 2 })
    }

    #[test]
    fn a_target_is_met_or_missed_or_broken_by_its_floor() {
        let text = targets(6.0, [0.0; 3]).to_string();
        assert!(text.contains("at least 1.35 | 1.50 (1.50 to 1.50) | met |"), "{text}");
        let missed = targets(5.6, [0.0; 3]);
        assert!(missed.to_string().contains("| not met |") && missed.broken(false).is_empty());
        assert_eq!(targets(5.0, [0.0; 3]).broken(false).len(), 1);
    }

    #[test]
    fn one_round_with_retransmits_breaks_the_gate() {
        let broken = targets(6.0, [0.0, 0.0, 3.0]).broken(false);
        assert!(broken.len() == 1 && broken[0].contains(RETRANSMITS), "{broken:?}");
    }

    #[test]
    fn gates_that_nobody_measured_fail_a_run_of_everything_only() {
        let targets = targets(6.0, [0.0; 3]);
        assert!(targets.broken(false).is_empty());
        let broken = targets.broken(true);
        assert!(broken.iter().any(|what| what.contains(SMALL_UDP)), "{broken:?}");
    }
}
