//! `aegis-hook`: `aegis hook` as a small program, because an agent starts it before each of its actions.
//!
//!     aegis-hook --agent AGENT --kernel-socket PATH [--wait SECONDS]
//!
//! Arguments that it does not understand refuse the action, as everything else does that goes wrong.

#[path = "../hook/ask.rs"]
mod ask;

use std::{env, io::Write as _, path::PathBuf, process::ExitCode};

use aegis_protocol::hooks::Agent;

fn main() -> ExitCode {
    match arguments(env::args().skip(1)) {
        Some(ask) => ExitCode::from(ask::run(ask)),
        None => {
            let usage = "aegis-hook: give --agent AGENT --kernel-socket PATH [--wait SECONDS]; until then everything is refused";
            let _ = writeln!(std::io::stderr(), "{usage}");
            ExitCode::from(2)
        }
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Option<ask::Ask> {
    let (mut agent, mut socket, mut wait) = (None, None, 0);
    while let Some(name) = given.next() {
        let value = given.next()?;
        match name.as_str() {
            "--agent" => agent = Some(Agent::named(&value)?),
            "--kernel-socket" => socket = Some(PathBuf::from(value)),
            "--wait" => wait = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(ask::Ask { agent: agent?, socket: socket?, wait })
}
