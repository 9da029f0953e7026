//! The table of adapters and clauses, from the suite's reports:
//!
//! ```sh
//! cargo test -p handover-tokio --all-features --test conformance -- --report /tmp/tokio.json
//! cargo run -p handover-conformance --example table -- /tmp/tokio.json …
//! cargo run -p handover-conformance --example table -- --clauses /tmp/tokio.json …
//! ```
//!
//! A row is a group of cases, or with `--clauses` each single one. With `--into FILE` the table takes
//! the place of the one that stands in that file after a line `<!-- table -->`. Exit status 1 if
//! anything failed.
#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::collections::BTreeMap;
use std::process::ExitCode;

/// One report: the adapter's name, and per case its clause and outcome.
struct Report {
    adapter: String,
    cases: BTreeMap<String, (String, String)>,
}

/// After this line of a file stands the table, up to the next empty line but one.
const MARK: &str = "<!-- table -->";

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let (mut clauses, mut into, mut reports) = (false, None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--clauses" => clauses = true,
            "--into" => into = Some(arguments.next().ok_or("--into needs a file")?),
            file => reports.push(read(&std::fs::read_to_string(file)?)),
        }
    }
    let table = table(&reports, clauses);
    match into {
        Some(file) => {
            let text = std::fs::read_to_string(&file)?;
            let (before, after) = text.split_once(MARK).ok_or(format!("{file} has no {MARK}"))?;
            let after = after.trim_start().split_once("\n\n").map_or("", |(_, after)| after);
            let end = if after.is_empty() { "" } else { "\n" };
            std::fs::write(&file, format!("{before}{MARK}\n\n{table}{end}{after}"))?;
        }
        None => print!("{table}"),
    }
    let outcomes = reports.iter().flat_map(|report| report.cases.values());
    let failed = outcomes.filter(|(_, outcome)| outcome == "failed").count();
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(reports: &[Report], clauses: bool) -> String {
    let adapters: Vec<_> = reports.iter().map(|report| report.adapter.as_str()).collect();
    let mut names: Vec<_> = reports.iter().flat_map(|report| report.cases.keys()).collect();
    names.sort();
    names.dedup();
    let group = |name: &str| name.split("::").next().unwrap_or(name).replace('_', " ");
    let rows: Vec<(String, Vec<&String>)> = if clauses {
        names
            .iter()
            .map(|name| (format!("{} | {}", group(name), clause(reports, name)), vec![*name]))
            .collect()
    } else {
        let mut groups: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        for name in names {
            groups.entry(group(name)).or_default().push(name);
        }
        groups.into_iter().collect()
    };
    let first = if clauses { "group | clause" } else { "cases" };
    let columns = first.matches('|').count() + 1 + adapters.len();
    let mut table =
        format!("| {first} | {} |\n|{}\n", adapters.join(" | "), "---|".repeat(columns));
    for (row, names) in rows {
        let cells: Vec<_> = reports.iter().map(|report| cell(report, &names, clauses)).collect();
        table += &format!("| {row} | {} |\n", cells.join(" | "));
    }
    table
}

fn cell(report: &Report, names: &[&String], clauses: bool) -> String {
    let outcomes = || names.iter().filter_map(|name| report.cases.get(*name));
    let count =
        |wanted: &str| outcomes().filter(|(_, outcome)| outcome.starts_with(wanted)).count();
    if clauses && let [name] = names {
        return report.cases.get(*name).map_or("–".to_owned(), |(_, outcome)| outcome.clone());
    }
    let parts = [("passed", ""), ("failed", "**"), ("skipped", "")].map(|(outcome, bold)| {
        let count = count(outcome);
        if count == 0 { String::new() } else { format!("{bold}{count} {outcome}{bold}") }
    });
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "–".to_owned() } else { parts.join(", ") }
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
