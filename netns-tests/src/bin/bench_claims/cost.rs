//! What clients cost, and how steady they are over thousands of days, by simulation (the example `claims` of `agent-sim`).

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::table::Row;

pub(crate) fn rows(bench: &Bench, _name: &str) -> Result<Vec<Row>> {
    let example = bench.binaries.agent.with_file_name("examples").join("claims");
    let output = Command::new(&example).env("PAIR_DAYS", bench.pair_days.to_string()).output();
    let output = output.with_context(|| {
        format!("{} is missing: cargo build --release -p agent-sim --example claims", example.display())
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
