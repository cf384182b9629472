//! Figures of many rounds, as tables: programs side by side, ours in relation to each of the others, and what the filter costs.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result, Write};

use crate::load::{Work, few};
use crate::{ENDPOINT, FILTER, OURS, PARTS, RULES};

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    unit: &'static str,
    value: f64,
    /// Whether more is better.
    more: bool,
}

impl Figure {
    pub(crate) fn more(unit: &'static str, value: f64) -> Self {
        Self { unit, value, more: true }
    }

    pub(crate) fn less(unit: &'static str, value: f64) -> Self {
        Self { unit, value, more: false }
    }
}

/// What a row is about.
type Row = (&'static str, &'static str);

#[derive(Default)]
pub(crate) struct Table {
    /// In the order they were measured first.
    rows: Vec<(Row, bool)>,
    programs: Vec<String>,
    /// A value for each round.
    values: BTreeMap<(Row, String), Vec<f64>>,
}

impl Table {
    pub(crate) fn add(&mut self, program: &str, load: &'static str, figures: Vec<Figure>) {
        if !self.programs.iter().any(|known| known == program) {
            self.programs.push(program.to_owned());
        }
        for Figure { unit, value, more } in figures {
            let row = (load, unit);
            if !self.rows.iter().any(|(known, _)| *known == row) {
                self.rows.push((row, more));
            }
            self.values.entry((row, program.to_owned())).or_default().push(value);
        }
    }

    /// Of every round in which it was measured.
    pub(crate) fn of(&self, row: Row, program: &str) -> &[f64] {
        self.values.get(&(row, program.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// Ours against `other`, round by round: how many times better.
    pub(crate) fn ratios(&self, row: Row, more: bool, other: &str) -> Vec<f64> {
        let rounds = self.of(row, OURS).iter().zip(self.of(row, other));
        let ratios = rounds.map(|(ours, theirs)| if more { ours / theirs } else { theirs / ours });
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }
}

/// What the filter takes, in per cent of the speed: one program with it and without.
pub(crate) struct Cost<'a>(pub &'a Table);

impl Cost<'_> {
    /// Round by round.
    pub(crate) fn of(&self, load: &'static str, work: Work, filter: &str) -> Vec<f64> {
        let of = |program| self.0.of((load, work.unit()), program).iter();
        of(ENDPOINT).zip(of(filter)).map(|(without, with)| 100.0 * (1.0 - with / without)).collect()
    }
}

impl Display for Cost<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "What the filter costs, in % of the speed without it, round by round.\n")?;
        writeln!(f, "| load | {ENDPOINT} | {FILTER} | cost, % | {RULES} | cost, % |\n|{}", "---|".repeat(6))?;
        for (name, work) in few() {
            write!(f, "| {name} | {} |", spread(self.0.of((name, work.unit()), ENDPOINT)))?;
            for filter in [FILTER, RULES] {
                let with = spread(self.0.of((name, work.unit()), filter));
                write!(f, " {with} | {} |", spread(&self.of(name, work, filter)))?;
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "| load | unit |")?;
        self.programs.iter().try_for_each(|name| write!(f, " {name} |"))?;
        writeln!(f, "\n|{}", "---|".repeat(2 + self.programs.len()))?;
        for (row, _) in &self.rows {
            write!(f, "| {} | {} |", row.0, row.1)?;
            self.programs.iter().try_for_each(|name| write!(f, " {} |", spread(self.of(*row, name))))?;
            f.write_char('\n')?;
        }
        let others: Vec<&String> =
            self.programs.iter().filter(|name| *name != OURS && !PARTS.contains(&name.as_str())).collect();
        writeln!(f, "\n{OURS} against others, round by round: above 1 is better.\n")?;
        write!(f, "| load | unit |")?;
        others.iter().try_for_each(|name| write!(f, " times {name} |"))?;
        writeln!(f, "\n|{}", "---|".repeat(2 + others.len()))?;
        for (row, more) in &self.rows {
            let ratios: Vec<Vec<f64>> = others.iter().map(|name| self.ratios(*row, *more, name)).collect();
            if ratios.iter().any(|ratios| !ratios.is_empty()) {
                let cells: Vec<String> = ratios.iter().map(|ratios| spread(ratios)).collect();
                writeln!(f, "| {} | {} | {} |", row.0, row.1, cells.join(" | "))?;
            }
        }
        Ok(())
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// By the nearest rank; 0 of nothing.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// `median (lowest to highest)`.
pub(crate) fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let of = |percent| short(percentile(values, percent));
    format!("{} ({} to {})", of(50), of(0), of(100))
}

/// Three digits that tell something.
fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        0.1..10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TCP;

    fn table() -> Table {
        let mut table = Table::default();
        for (ours, theirs) in [(6.0, 4.0), (7.0, 3.5), (5.0, 4.0)] {
            table.add(OURS, "TCP", vec![Figure::more("Gbit/s", ours), Figure::less("ms", 1.0)]);
            table.add("other", "TCP", vec![Figure::more("Gbit/s", theirs), Figure::less("ms", 2.0)]);
        }
        table
    }

    #[test]
    fn rounds_are_compared_one_by_one_and_better_is_above_one() {
        let table = table();
        assert_eq!(table.ratios(("TCP", "Gbit/s"), true, "other"), [1.5, 2.0, 1.25]);
        assert_eq!(table.ratios(("TCP", "ms"), false, "other"), [2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_row_shows_medians_and_spreads() {
        let text = table().to_string();
        assert!(text.contains("| TCP | Gbit/s | 6 (5 to 7) | 4 (3.50 to 4) |"), "{text}");
        assert!(text.contains("| TCP | Gbit/s | 1.50 (1.25 to 2) |"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut table = table();
        table.add(OURS, "memory", vec![Figure::less("peak MB", 8.0)]);
        assert!(table.to_string().contains("| memory | peak MB | 8 (8 to 8) | - |"));
    }

    #[test]
    fn the_filter_costs_what_its_rounds_lost_and_what_it_gained_is_below_nothing() {
        let mut table = Table::default();
        for (without, with) in [(10.0, 9.8), (10.0, 10.1), (8.0, 7.6)] {
            table.add(ENDPOINT, TCP, vec![Figure::more("Gbit/s", without)]);
            table.add(FILTER, TCP, vec![Figure::more("Gbit/s", with)]);
        }
        let text = Cost(&table).to_string();
        assert!(text.contains("| 2.00 (-1.00 to 5.00) |"), "{text}");
    }
}
