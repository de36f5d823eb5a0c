//! AgentUpstream: whether agents can be sent there.

use std::sync::Arc;

use aegis_resources::{AgentUpstreamSpec, kinds::AgentUpstream, status::UpstreamStatus};

use crate::{
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    object::Stored,
    status::{Finding, conclude},
};

/// Reconciles upstreams.
#[derive(Debug)]
pub struct Upstreams {
    /// What controllers share.
    pub shared: Shared,
}

impl Reconcile for Upstreams {
    type Kind = AgentUpstream;
    const CONTROLLER: &'static str = "agentupstream";

    async fn status(
        &self,
        object: Arc<Stored<AgentUpstream>>,
    ) -> Result<UpstreamStatus, ReconcileError> {
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        let spec = object.spec.as_ref().map_err(Clone::clone);
        let finding = match spec.and_then(|spec| of_cluster(&spec.0)) {
            Ok(()) => {
                Finding::yes("Ready", "Valid", "sidecars may send its namespace's agents there")
            }
            Err(message) => Finding::no("Ready", "Invalid", message),
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}

/// Whether sidecars can reach it. What an upstream names of the machine that it is served on would
/// be taken from the sidecar's own files, and is the namespace's author's choice: that is refused.
///
/// # Errors
/// One sentence on what cannot be used.
pub fn of_cluster(spec: &AgentUpstreamSpec) -> Result<(), String> {
    spec.validate()?;
    let of_machine = [
        ("command", spec.command.is_some()),
        ("credential", spec.credential.is_some()),
        ("roots", spec.roots.is_some()),
        ("listen", spec.listen.is_some()),
    ];
    match of_machine.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => Err(format!(
            "`spec.{field}` is for one machine and its files; sidecars take upstreams with a `url` alone"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_files_of_a_machine_is_for_that_machine() {
        let spec = |more: &str| {
            serde_yaml_ng::from_str::<AgentUpstreamSpec>(&format!(
                "url: https://a.example/mcp\n{more}"
            ))
            .unwrap()
        };
        assert_eq!(of_cluster(&spec("")), Ok(()));
        for (field, more) in [
            ("credential", "credential: { file: /var/run/secrets/aegis/token }"),
            ("roots", "roots: /etc/passwd"),
            ("listen", "listen: 127.0.0.1:7000"),
        ] {
            let refused = of_cluster(&spec(more)).unwrap_err();
            assert!(refused.contains(field), "{refused}");
        }
        let command: AgentUpstreamSpec =
            serde_yaml_ng::from_str("command: { program: /bin/cat }").unwrap();
        assert!(of_cluster(&command).unwrap_err().contains("command"));
    }
}
