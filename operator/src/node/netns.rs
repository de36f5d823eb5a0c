//! The network namespace of a pod: found through its processes, and entered by a thread of its own.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    process::{Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a pod's network could not be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetnsError {
    /// The API server's UID of a pod is a UUID, and nothing else is looked for.
    #[error("`{0}` is no pod's UID")]
    Uid(String),
    /// The node's processes cannot be seen.
    #[error("the node's processes cannot be read: {0}; the node agent needs hostPID")]
    Processes(#[source] io::Error),
    /// It may not be entered.
    #[error(
        "the pod's network cannot be entered: {0}; the node agent needs SYS_ADMIN and SYS_PTRACE"
    )]
    Enter(#[source] io::Error),
    /// `nft` cannot be run.
    #[error("nft cannot be run: {0}")]
    Run(#[source] io::Error),
    /// `nft` refused the rules.
    #[error("nft did not take the rules: {0}")]
    Rules(String),
}

/// A pod's network namespace, held open.
#[derive(Debug)]
pub(super) struct Netns(File);

/// Whether this process is in the network of the node's first process: what is its own is then the
/// node's. True also where the first process lets nobody look.
pub(super) fn is_the_nodes(proc: &Path) -> bool {
    match (identity(&proc.join("1")), identity(&proc.join("self"))) {
        (Ok(nodes), Ok(own)) => nodes == own,
        _ => true,
    }
}

/// The network namespace of the pod with this UID, which is never this process's own; `None` while the
/// pod has no process.
///
/// # Errors
/// When processes cannot be read.
pub(super) fn of_pod(proc: &Path, uid: &str) -> Result<Option<Netns>, NetnsError> {
    let parsed = uuid::Uuid::try_parse(uid).map_err(|_| NetnsError::Uid(uid.to_owned()))?;
    let pod = PodCgroup::new(parsed);
    let own = identity(&proc.join("self")).map_err(NetnsError::Processes)?;
    for process in fs::read_dir(proc).map_err(NetnsError::Processes)? {
        let process = process.map_err(NetnsError::Processes)?;
        let is_process =
            process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        if !is_process || !pod.holds(&process.path()) {
            continue;
        }
        // A process that has ended meanwhile is no obstacle; others of the pod follow.
        let Ok(namespace) = File::open(process.path().join("ns/net")) else { continue };
        let Ok(metadata) = namespace.metadata() else { continue };
        // Its number may have become another process's: what was opened counts only if it still is the pod's.
        if (metadata.dev(), metadata.ino()) != own && pod.holds(&process.path()) {
            return Ok(Some(Netns(namespace)));
        }
    }
    Ok(None)
}

/// Which network namespace a process has.
fn identity(process: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(process.join("ns/net"))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// How the kubelet names a pod's cgroup: `pod<UID>`, or `…-pod<UID with underscores>.slice`.
struct PodCgroup {
    plain: String,
    slice: String,
}

impl PodCgroup {
    fn new(uid: uuid::Uuid) -> Self {
        let uid = uid.hyphenated().to_string();
        Self { plain: format!("pod{uid}"), slice: format!("-pod{}.slice", uid.replace('-', "_")) }
    }

    fn holds(&self, process: &Path) -> bool {
        let Ok(cgroups) = fs::read_to_string(process.join("cgroup")) else { return false };
        cgroups.split(['/', '\n']).any(|one| one == self.plain || one.ends_with(&self.slice))
    }
}

impl Netns {
    /// Puts the rules in force, unless some of Aegis' are. Whether it did.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `nft` refuses.
    pub(super) fn redirect(self, rules: &str) -> Result<bool, NetnsError> {
        // A thread that has entered another namespace is of no other use.
        let inside = std::thread::scope(|scope| scope.spawn(|| self.redirect_inside(rules)).join());
        inside.unwrap_or_else(|_| Err(NetnsError::Run(io::Error::other("its thread has failed"))))
    }

    fn redirect_inside(&self, rules: &str) -> Result<bool, NetnsError> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| NetnsError::Enter(error.into()))?;
        let present = nft(&["list", "table", "inet", "aegis"], "")?;
        if present.is_ok() {
            return Ok(false);
        }
        nft(&["-f", "-"], rules)?.map_err(NetnsError::Rules)?;
        Ok(true)
    }
}

/// Runs `nft` in this thread's network; the inner result is its verdict.
fn nft(arguments: &[&str], input: &str) -> Result<Result<(), String>, NetnsError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetnsError::Run)?;
    if let Some(mut stdin) = child.stdin.take()
        && !input.is_empty()
    {
        stdin.write_all(input.as_bytes()).map_err(NetnsError::Run)?;
    }
    let done = child.wait_with_output().map_err(NetnsError::Run)?;
    if done.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UID: &str = "0f9b2c1e-6d5a-4b3c-8e7f-112233445566";

    /// A folder like `/proc`, of processes as (number, cgroup, network namespace).
    fn processes(all: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (number, cgroup, net) in all {
            let process = folder.path().join(number);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
            let namespace = folder.path().join(format!("net-{net}"));
            fs::write(&namespace, net).unwrap();
            symlink(&namespace, process.join("ns/net")).unwrap();
        }
        folder
    }

    fn found(all: &[(&str, &str, &str)]) -> Option<String> {
        let folder = processes(all);
        let namespace = of_pod(folder.path(), UID).unwrap()?;
        Some(io::read_to_string(namespace.0).unwrap())
    }

    #[test]
    fn a_pods_network_is_found_by_its_cgroup() {
        let host = ("self", "/init.scope", "host");
        let other = ("7", "/kubepods/pod1f9b2c1e-6d5a-4b3c-8e7f-112233445566/a", "other");
        assert_eq!(found(&[host, other]), None);
        let plain = format!("/../kubepods/besteffort/pod{UID}/0123");
        assert_eq!(found(&[host, other, ("9", &plain, "pod")]).as_deref(), Some("pod"));
        let slice = UID.replace('-', "_");
        let slice = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-1.scope"
        );
        assert_eq!(found(&[host, other, ("9", &slice, "pod")]).as_deref(), Some("pod"));
    }

    #[test]
    fn the_nodes_own_network_is_never_a_pods() {
        let host = ("self", "/init.scope", "host");
        let of_the_runtime = format!("/kubepods/pod{UID}/shim");
        assert_eq!(found(&[host, ("9", &of_the_runtime, "host")]), None);
    }

    #[test]
    fn only_a_pods_uid_is_looked_for() {
        let folder = processes(&[("self", "/", "host")]);
        for uid in ["", "..", "pod", "0f9b2c1e"] {
            assert!(matches!(of_pod(folder.path(), uid), Err(NetnsError::Uid(_))), "{uid}");
        }
    }
}
