//! The Python peer: `agent-governance-toolkit-core` in a process of its own, with its own clock
//! around its own loop, so that no figure holds the way between the processes.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::Call;

/// Names the interpreter of a virtual environment that `e2e/setup.sh agent-toolkit` made.
const INTERPRETER: &str = "AEGIS_BENCH_TOOLKIT";

/// The running evaluator.
pub(crate) struct Toolkit {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) version: String,
}

impl Toolkit {
    /// Starts it over the same facts, as the flat document that its conditions read.
    pub(crate) fn start(regex: bool, call: &Call) -> Result<Self> {
        let Some(python) = env::var_os(INTERPRETER) else {
            bail!("{INTERPRETER} is not set; e2e/setup.sh agent-toolkit installs it");
        };
        let mut child = Command::new(python)
            .args(["-W", "ignore::DeprecationWarning", "-c", include_str!("toolkit.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take().context("it has no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("it has no standard output")?);
        let mut toolkit = Self { child, ask, answers, version: String::new() };
        let mut context = json!({ "tool": "write_query", "trust": call.trust, "rate": 3, "table": call.arguments["table"] });
        if regex {
            context["query"] = call.arguments["query"].clone();
        }
        writeln!(toolkit.ask, "{}", json!({ "regex": regex, "context": context }))?;
        toolkit.version = toolkit.line()?;
        Ok(toolkit)
    }

    /// Nanoseconds of one decision, over a loop of this length.
    pub(crate) fn time(&mut self, length: Duration) -> Result<u64> {
        writeln!(self.ask, "{}", length.as_millis())?;
        Ok(self.line()?.parse()?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("it ended: {}", self.child.wait()?);
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Toolkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
