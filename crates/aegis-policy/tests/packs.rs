//! The policy packs that are delivered: each compiles, and each of its own cases holds.

mod fixture;

use std::{fs, path::Path};

use aegis_policy::{PolicyState, sandbox::run_pack};
use fixture::{compiler, empty_engine};

/// Fewer cases cannot hold a hit, a near miss and an evasion of each rule.
const FEWEST_CASES: usize = 6;

#[test]
fn every_pack_holds() {
    let packs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let compiler = compiler();
    let mut folders: Vec<_> = fs::read_dir(packs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty());
    let mut problems = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let report = match run_pack(&folder, &compiler, &empty_engine) {
            Ok(report) => report,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        println!("{name}: {} cases", report.cases.len());
        for status in report.policies.iter().filter(|status| status.state != PolicyState::Ready) {
            let line = status.line.map(|line| format!(", line {line}")).unwrap_or_default();
            problems.push(format!("{name}: {}{line}: {}", status.policy, status.message));
        }
        if let Some((false, output)) = report.rego {
            problems.push(format!("{name}: {output}"));
        }
        if report.cases.len() < FEWEST_CASES {
            problems.push(format!("{name}: only {} cases", report.cases.len()));
        }
        problems.extend(report.cases.into_iter().filter_map(|case| {
            case.problem.map(|problem| format!("{name}: {}: {problem}", case.name))
        }));
        if !folder.join("README.md").is_file() {
            problems.push(format!("{name}: it has no README.md"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
