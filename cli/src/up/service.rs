//! `aegis up --as-service`: the daemon under a user of its own, so that agents can neither read its
//! keys, edit its policies nor answer approvals.

use std::path::Path;

use anyhow::Context as _;

use super::Args;
use crate::output::Text;

const UNIT: &str = include_str!("service/aegis.service");

/// Prints the unit.
pub(super) fn print(args: &Args) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut text = Text::new();
    for line in unit(args, &program).lines() {
        text.line(line);
    }
    text.print()?;
    Ok(())
}

fn unit(args: &Args, program: &Path) -> String {
    let mut more = String::new();
    for operator in &args.operators {
        more.push_str(&format!(" --operator {operator}"));
    }
    UNIT.replace("{{program}}", &program.display().to_string())
        .replace("{{trust_domain}}", &args.trust_domain.to_string())
        .replace("{{more}}", &more)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Up {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_unit_starts_this_program_with_what_was_asked_for() {
        let given = ["up", "--as-service", "--operator", "ada", "--trust-domain", "acme.example"];
        let unit = unit(&Up::parse_from(given).args, Path::new("/opt/aegis"));
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<&str> = start.split(' ').collect();
        assert_eq!(words[..2], ["/opt/aegis", "up"]);
        let started = Up::parse_from(&words[1..]).args;
        assert_eq!(started.operators, ["ada"]);
        assert_eq!(started.trust_domain.to_string(), "acme.example");
        assert_eq!(started.sockets.as_deref(), Some(Path::new("/run/aegis")));
        assert!(!unit.contains("{{"), "{unit}");
    }
}
