//! What clients cost, and how steady they are over thousands of days, by the simulation of `agent-core` (its example `claims`).

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::table::Row;

/// Of one client with two nodes, at 1 % loss.
const PAIR_DAYS: &str = "1000";

pub(crate) fn rows(bench: &Bench, _name: &str) -> Result<Vec<Row>> {
    let example = bench.binaries.agent.with_file_name("examples").join("claims");
    let output = Command::new(&example).env("PAIR_DAYS", PAIR_DAYS).output();
    let output = output.with_context(|| {
        format!("{} is missing: cargo build --release -p agent-core --example claims", example.display())
    })?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "the simulation found {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows = said.lines().filter_map(|line| line.split_once(": "));
    Ok(rows.map(|(what, figure)| Row::said(what, "simulation", figure)).collect())
}
