//! Pods that could undo the redirect, speak as the sidecar or read its token.

use serde_json::Value;

use super::{InjectConfig, PREFIX, Refusal, SOCKET_VOLUME, name_of};

/// Capabilities with which a container could leave the sidecar's reach.
const DANGEROUS: [&str; 12] = [
    "ALL",
    "BPF",
    "DAC_READ_SEARCH",
    "NET_ADMIN",
    "NET_RAW",
    "PERFMON",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
];

/// Checks a pod without Aegis' own containers and volumes.
pub(super) fn check(pod: &Value, config: &InjectConfig) -> Result<(), Refusal> {
    let Some(spec) = pod.get("spec").filter(|spec| spec.is_object()) else {
        return Err(Refusal::new("Malformed", "the pod has no spec"));
    };
    host(spec)?;
    user(spec, config, "the pod")?;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in spec.get(list).and_then(Value::as_array).into_iter().flatten() {
            container(one, config)?;
        }
    }
    for volume in spec.get("volumes").and_then(Value::as_array).into_iter().flatten() {
        token(volume, config)?;
    }
    Ok(())
}

fn host(spec: &Value) -> Result<(), Refusal> {
    let set = |field: &str| spec.get(field).and_then(Value::as_bool) == Some(true);
    for (field, reason, why) in [
        ("hostNetwork", "HostNetwork", "its traffic is the node's and cannot be redirected"),
        ("hostPID", "HostPID", "it could reach into the sidecar's process"),
        ("hostIPC", "HostIPC", "it could reach what the node's processes share"),
        ("shareProcessNamespace", "SharedProcesses", "it could reach into the sidecar's process"),
    ] {
        if set(field) {
            return Err(Refusal::new(
                reason,
                format!(
                    "`spec.{field}` is true: {why}; remove it, or run the pod in a namespace without `aegis.dev/inject`"
                ),
            ));
        }
    }
    // The sidecar asks the same name servers where a host is that a policy names.
    let own_names = spec.pointer("/dnsConfig/nameservers").and_then(Value::as_array);
    if spec.get("dnsPolicy").and_then(Value::as_str) == Some("None")
        || own_names.is_some_and(|servers| !servers.is_empty())
    {
        return Err(Refusal::new(
            "NameServers",
            "`spec.dnsPolicy` is None or `spec.dnsConfig` names name servers: whoever chooses them says where permitted hosts are; remove that",
        ));
    }
    if spec.pointer("/os/name").and_then(Value::as_str) == Some("windows") {
        return Err(Refusal::new(
            "Windows",
            "`spec.os.name` is windows, where Aegis has no sidecar; run the pod in a namespace without `aegis.dev/inject`",
        ));
    }
    Ok(())
}

/// Nobody but the sidecar may be its user: that user's traffic is not redirected.
fn user(holder: &Value, config: &InjectConfig, whose: &str) -> Result<(), Refusal> {
    for field in ["runAsUser", "runAsGroup"] {
        let id = holder.pointer(&format!("/securityContext/{field}")).and_then(Value::as_u64);
        if id == Some(config.uid.into()) {
            return Err(Refusal::new(
                "ProxyUser",
                format!(
                    "`securityContext.{field}` of {whose} is {}, the sidecar's own; choose another",
                    config.uid
                ),
            ));
        }
    }
    Ok(())
}

fn container(container: &Value, config: &InjectConfig) -> Result<(), Refusal> {
    let name = name_of(container);
    let refuse = |reason, message: String| Err(Refusal::new(reason, message));
    if name.starts_with(PREFIX) {
        return refuse(
            "ReservedName",
            format!(
                "container `{name}` has a name of Aegis' own; names that begin with `{PREFIX}` are reserved"
            ),
        );
    }
    user(container, config, &format!("container `{name}`"))?;
    let security = container.get("securityContext").unwrap_or(&Value::Null);
    if security.get("privileged").and_then(Value::as_bool) == Some(true) {
        return refuse(
            "Privileged",
            format!(
                "container `{name}` is privileged and could undo the redirect; remove `privileged`"
            ),
        );
    }
    if security.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(true) {
        return refuse(
            "Escalation",
            format!(
                "container `{name}` sets `allowPrivilegeEscalation: true`, with which a program can become the sidecar's user; remove it"
            ),
        );
    }
    if security.get("procMount").and_then(Value::as_str) == Some("Unmasked") {
        return refuse(
            "ProcMount",
            format!("container `{name}` has an unmasked /proc; remove `procMount`"),
        );
    }
    let added = security.pointer("/capabilities/add").and_then(Value::as_array);
    for capability in added.into_iter().flatten().filter_map(Value::as_str) {
        let plain = capability.trim_start_matches("CAP_").to_ascii_uppercase();
        if DANGEROUS.contains(&plain.as_str()) {
            return refuse(
                "Capability",
                format!(
                    "container `{name}` adds {capability}, with which it could go round the sidecar; remove it"
                ),
            );
        }
    }
    for field in ["volumeMounts", "volumeDevices"] {
        for mount in container.get(field).and_then(Value::as_array).into_iter().flatten() {
            let volume = name_of(mount);
            if volume.starts_with(PREFIX) && volume != SOCKET_VOLUME {
                return refuse(
                    "ReservedName",
                    format!(
                        "container `{name}` mounts `{volume}`, which is the sidecar's own; remove the mount"
                    ),
                );
            }
        }
    }
    Ok(())
}

/// A token for the CA lets its holder be the sidecar.
fn token(volume: &Value, config: &InjectConfig) -> Result<(), Refusal> {
    let name = name_of(volume);
    if name.starts_with(PREFIX) {
        return Err(Refusal::new(
            "ReservedName",
            format!(
                "volume `{name}` has a name of Aegis' own; names that begin with `{PREFIX}` are reserved"
            ),
        ));
    }
    let sources = volume.pointer("/projected/sources").and_then(Value::as_array);
    let audience = |source: &Value| {
        source.pointer("/serviceAccountToken/audience").and_then(Value::as_str)
            == Some(config.audience.as_str())
    };
    if sources.is_some_and(|sources| sources.iter().any(audience)) {
        return Err(Refusal::new(
            "CaToken",
            format!(
                "volume `{name}` projects a token with audience `{}`, which only the sidecar may have; remove it",
                config.audience
            ),
        ));
    }
    Ok(())
}
