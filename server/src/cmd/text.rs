//! What commands print: tables for people, JSON for programs. A closed pipe is no error.

use proto::time::UnixTime;
use serde::Serialize;
use std::{io::Write, time::Duration};

pub(crate) fn print(line: &str) {
    // Whoever closed the pipe has read enough.
    let _closed = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn print_table<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    print(&line(&head));
    for row in rows {
        print(&line(&row.each_ref().map(String::as_str)));
    }
}

/// `in 6d`, `3h ago`, or `never` for a moment that does not come.
pub(crate) fn moment(at: Option<UnixTime>, now: UnixTime) -> String {
    match at {
        None => "never".to_owned(),
        Some(at) if at > now => format!("in {}", span(at.since(now))),
        Some(at) => format!("{} ago", span(now.since(at))),
    }
}

/// In its largest unit.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        172_800.. => format!("{}d", seconds / 86_400),
    }
}

/// `-` for nothing.
pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "-".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_from_now() {
        let now = UnixTime(1_000_000);
        assert_eq!(moment(None, now), "never");
        assert_eq!(moment(Some(UnixTime(1_000_090)), now), "in 90s");
        assert_eq!(moment(Some(UnixTime(1_000_000 - 3 * 3600)), now), "3h ago");
        assert_eq!(moment(Some(now.saturating_add(Duration::from_secs(7 * 86_400))), now), "in 7d");
    }
}
