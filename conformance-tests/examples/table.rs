//! The table of adapters and groups of clauses, from the suite's reports:
//!
//! ```sh
//! cargo test -p handover-tokio --test conformance -- --report /tmp/tokio.json
//! cargo run -p handover-conformance --example table -- [--clauses] /tmp/tokio.json …
//! ```
//!
//! Exit status 1 if anything failed.
#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::collections::BTreeMap;
use std::process::ExitCode;

/// One report: the adapter's name, and per case its clause and outcome.
struct Report {
    adapter: String,
    cases: BTreeMap<String, (String, String)>,
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut clauses = false;
    let mut reports = Vec::new();
    for argument in std::env::args().skip(1) {
        if argument == "--clauses" {
            clauses = true;
        } else {
            reports.push(read(&std::fs::read_to_string(argument)?));
        }
    }
    let adapters: Vec<_> = reports.iter().map(|report| report.adapter.as_str()).collect();
    println!("| | {} |", adapters.join(" | "));
    println!("|---{}|", "|---".repeat(adapters.len()));
    let mut names: Vec<_> = reports.iter().flat_map(|report| report.cases.keys()).collect();
    names.sort();
    names.dedup();
    let rows: Vec<(String, Vec<&String>)> = if clauses {
        names.iter().map(|name| (clause(&reports, name), vec![*name])).collect()
    } else {
        let mut groups: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for name in names {
            groups.entry(name.split("::").next().unwrap_or(name)).or_default().push(name);
        }
        groups.into_iter().map(|(group, names)| (group.replace('_', " "), names)).collect()
    };
    let mut failed = false;
    for (row, names) in rows {
        let cells: Vec<_> = reports.iter().map(|report| cell(report, &names)).collect();
        failed |= cells.iter().any(|cell| cell.contains("failed"));
        println!("| {row} | {} |", cells.join(" | "));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cell(report: &Report, names: &[&String]) -> String {
    let count = |wanted: &str| {
        let outcomes = names.iter().filter_map(|name| report.cases.get(*name));
        outcomes.filter(|(_, outcome)| outcome.starts_with(wanted)).count()
    };
    let (passed, failed, skipped) = (count("passed"), count("failed"), count("skipped"));
    let mut cell = format!("{passed} passed");
    if failed > 0 {
        cell += &format!(", **{failed} failed**");
    }
    if skipped > 0 {
        cell += &format!(", {skipped} skipped");
    }
    cell
}

fn clause(reports: &[Report], name: &str) -> String {
    let found = reports.iter().find_map(|report| report.cases.get(name));
    found.map_or_else(|| name.to_owned(), |(clause, _)| clause.clone())
}

/// A report has one case a line.
fn read(text: &str) -> Report {
    let mut report = Report { adapter: field(text, "suite"), cases: BTreeMap::new() };
    for line in text.lines().filter(|line| line.contains("\"case\": ")) {
        let about = (field(line, "clause"), field(line, "outcome"));
        report.cases.insert(field(line, "case"), about);
    }
    report
}

fn field(text: &str, name: &str) -> String {
    let key = format!("\"{name}\": \"");
    let value = text.split_once(&key).map_or("", |(_, rest)| rest);
    let end = value.find("\", \"").or_else(|| value.find("\"}")).unwrap_or(value.len());
    value[..end].replace("\\\"", "\"")
}
