//! What was measured, as a table in Markdown, and whether it is within its target.

use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

use netns_tests::figures::{Samples, ms};

/// One row.
pub(crate) struct Row {
    pub(crate) what: String,
    /// Which program, with which settings.
    pub(crate) who: String,
    figures: Figures,
    target: Target,
}

enum Figures {
    Spans(Samples),
    /// So many, and of what.
    Counted(u64, String),
    Said(String),
    Failed(String),
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    P99(Duration),
    Worst(Duration),
    AtMost(u64),
    /// Printed only.
    None,
}

impl Row {
    pub(crate) fn spans(what: &str, who: &str, spans: Samples, target: Target) -> Self {
        Self::of(what, who, Figures::Spans(spans), target)
    }

    pub(crate) fn counted(what: &str, who: &str, count: u64, of: impl Into<String>, target: Target) -> Self {
        Self::of(what, who, Figures::Counted(count, of.into()), target)
    }

    pub(crate) fn said(what: &str, who: &str, text: impl Into<String>) -> Self {
        Self::of(what, who, Figures::Said(text.into()), Target::None)
    }

    pub(crate) fn failed(what: &str, who: &str, error: &anyhow::Error) -> Self {
        Self::of(what, who, Figures::Failed(format!("{error:#}").replace(['|', '\n'], " ")), Target::None)
    }

    fn of(what: &str, who: &str, figures: Figures, target: Target) -> Self {
        Self { what: what.to_owned(), who: who.to_owned(), figures, target }
    }

    pub(crate) fn is_measured(&self) -> bool {
        match self.figures {
            Figures::Spans(_) | Figures::Counted(..) | Figures::Said(_) => true,
            Figures::Failed(_) => false,
        }
    }

    /// `None`: there is no target.
    pub(crate) fn is_kept(&self) -> Option<bool> {
        match (&self.figures, self.target) {
            (Figures::Spans(spans), Target::P99(limit)) => Some(spans.percentile(99) <= limit),
            (Figures::Spans(spans), Target::Worst(limit)) => Some(spans.worst() <= limit),
            (Figures::Counted(count, _), Target::AtMost(limit)) => Some(*count <= limit),
            (Figures::Failed(_), _) => Some(false),
            (Figures::Spans(_), Target::AtMost(_) | Target::None)
            | (Figures::Counted(..), Target::P99(_) | Target::Worst(_) | Target::None)
            | (Figures::Said(_), _) => None,
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::P99(limit) => write!(f, "p99 {}", ms(*limit)),
            Self::Worst(limit) => write!(f, "worst {}", ms(*limit)),
            Self::AtMost(limit) => write!(f, "{limit} at most"),
            Self::None => Ok(()),
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "| {} | {} | ", self.what, self.who)?;
        match &self.figures {
            Figures::Spans(spans) => {
                let (p50, p99) = (ms(spans.percentile(50)), ms(spans.percentile(99)));
                write!(f, "{p50} | {p99} | {} | {}", ms(spans.worst()), spans.len())?;
            }
            Figures::Counted(count, of) => write!(f, "{count} {of} | | |")?,
            Figures::Said(text) => write!(f, "{text} | | |")?,
            Figures::Failed(error) => write!(f, "not measured: {error} | | |")?,
        }
        let verdict = match self.is_kept() {
            Some(true) => "kept",
            Some(false) => "**missed**",
            None => "",
        };
        write!(f, " | {} | {verdict} |", self.target)
    }
}

/// All rows, in the order in which they are to be read.
pub(crate) struct Table<'a>(pub(crate) Vec<&'a Row>);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "| what | who | p50 | p99 | worst | rounds | target | |\n|{}", "---|".repeat(8))?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        let missed = self.0.iter().filter(|row| row.is_kept() == Some(false)).count();
        let judged = self.0.iter().filter(|row| row.is_kept().is_some()).count();
        writeln!(f, "\n{} of {judged} targets kept", judged - missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(millis: &[u64]) -> Samples {
        let mut samples = Samples::new("x");
        samples.extend(millis.iter().copied().map(Duration::from_millis));
        samples
    }

    #[test]
    fn a_row_within_its_target_is_kept_and_one_beyond_is_missed() {
        let limit = Target::P99(Duration::from_millis(800));
        let kept = Row::spans("killed", "ours", spans(&[500, 800]), limit);
        assert_eq!(kept.to_string(), "| killed | ours | 500 ms | 800 ms | 800 ms | 2 | p99 800 ms | kept |");
        let missed = Row::spans("killed", "ours", spans(&[500, 801]), limit);
        let lost = Row::counted("drained", "ours", 1, "lost of 200", Target::AtMost(0));
        assert_eq!((missed.is_kept(), lost.is_kept()), (Some(false), Some(false)));
        let text = Table(vec![&kept, &missed, &lost]).to_string();
        assert!(text.contains("1 of 3 targets kept"), "{text}");
    }

    #[test]
    fn what_could_not_be_measured_is_a_row_of_one_line_and_keeps_nothing() {
        let row = Row::failed("killed", "ours", &anyhow::anyhow!("no |\nanswer"));
        assert!(!row.is_measured() && row.is_kept() == Some(false) && !row.to_string().contains('\n'));
    }
}
