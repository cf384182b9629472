//! Figures of many rounds, as a table: programs side by side, and ours in relation to each of the others.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result, Write};

const OURS: &str = "holdfast";

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

    fn of(&self, row: Row, program: &str) -> &[f64] {
        self.values.get(&(row, program.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// Ours against `other`, round by round: how many times better.
    fn ratios(&self, row: Row, more: bool, other: &str) -> Vec<f64> {
        let rounds = self.of(row, OURS).iter().zip(self.of(row, other));
        let ratios = rounds.map(|(ours, theirs)| if more { ours / theirs } else { theirs / ours });
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let others: Vec<&String> = self.programs.iter().filter(|name| name.as_str() != OURS).collect();
        write!(f, "| load | unit |")?;
        self.programs.iter().try_for_each(|name| write!(f, " {name} |"))?;
        others.iter().try_for_each(|name| write!(f, " times {name} |"))?;
        let columns = 2 + self.programs.len() + others.len();
        writeln!(f, "\n|{}", "---|".repeat(columns))?;
        for (row, more) in &self.rows {
            write!(f, "| {} | {} |", row.0, row.1)?;
            self.programs.iter().try_for_each(|name| write!(f, " {} |", spread(self.of(*row, name))))?;
            others.iter().try_for_each(|name| write!(f, " {} |", spread(&self.ratios(*row, *more, name))))?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

/// `median (lowest to highest)`.
fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(lowest), Some(median), Some(highest)) => {
            format!("{} ({} to {})", short(*median), short(*lowest), short(*highest))
        }
        (_, _, _) => "-".to_owned(),
    }
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
        assert!(text.contains("| TCP | Gbit/s | 6 (5 to 7) | 4 (3.50 to 4) | 1.50 (1.25 to 2) |"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut table = table();
        table.add(OURS, "memory", vec![Figure::less("peak MB", 8.0)]);
        assert!(table.to_string().contains("| memory | peak MB | 8 (8 to 8) | - | - |"));
    }
}
