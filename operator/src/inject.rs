//! Puts the sidecar into a pod: a pure function from a pod to a pod.
//!
//! It works on JSON, so that fields which this version does not know pass unchanged. It adds and
//! never reorders what is the author's. It refuses a pod that could undo the redirect, take the
//! sidecar's identity or see its token; it never skips one silently. Whether a namespace is enrolled
//! is decided by its label, which the pod's author does not own.
//!
//! `inject` of an injected pod is the same pod.

mod declared;
mod refuse;
pub mod rules;
mod sidecar;

use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use declared::{Declared, Probe};

/// What all of Aegis' own names in a pod begin with.
pub const PREFIX: &str = "aegis-";
/// The sidecar's container.
pub const PROXY: &str = "aegis-proxy";
/// The init container that redirects.
pub const REDIRECT: &str = "aegis-redirect";
/// The init container that waits until the node agent has redirected.
pub const AWAIT: &str = "aegis-await";
/// The volume with the token for the CA; only the sidecar mounts it.
pub const TOKEN_VOLUME: &str = "aegis-token";
/// The sidecar's own scratch space; only the sidecar mounts it.
pub const STATE_VOLUME: &str = "aegis-state";
/// The volume with the sockets that the application may use.
pub const SOCKET_VOLUME: &str = "aegis-socket";
/// Where the application finds the sockets.
pub const SOCKET_FOLDER: &str = "/run/aegis";
/// What was injected, for people and for the policy that checks the final state.
pub const INJECTED: &str = "aegis.dev/injected";
/// Ports that speak MCP, besides those whose names begin with `mcp`.
pub const MCP_PORTS: &str = "aegis.dev/mcp-ports";
/// Ports that speak A2A, besides those whose names begin with `a2a`.
pub const A2A_PORTS: &str = "aegis.dev/a2a-ports";

/// Which way traffic is redirected into the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redirect {
    /// By an init container, which needs NET_ADMIN.
    #[default]
    Init,
    /// By the node agent ([`crate::node`]), for namespaces whose pod security forbids that. An init
    /// container waits for it.
    Node,
}

/// How pods are injected.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectConfig {
    /// The image that holds the sidecar and `nft`.
    pub image: String,
    /// When the image is pulled.
    #[serde(default = "if_not_present")]
    pub image_pull_policy: String,
    /// The sidecar's arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// More of the sidecar's environment: where the operator, the CA and the ledger are.
    #[serde(default)]
    pub env: Map<String, Value>,
    /// The sidecar's user and group, which nobody else in the pod may have.
    #[serde(default = "proxy_uid")]
    pub uid: u32,
    /// Where redirected connections of the application arrive.
    #[serde(default = "outbound_port")]
    pub outbound_port: u16,
    /// Where redirected connections to the application arrive.
    #[serde(default = "inbound_port")]
    pub inbound_port: u16,
    /// Where the kubelet asks for the sidecar's health, and Prometheus for metrics.
    #[serde(default = "health_port")]
    pub health_port: u16,
    /// Which way traffic is redirected.
    #[serde(default)]
    pub redirect: Redirect,
    /// The audience of the token for the CA.
    #[serde(default = "audience")]
    pub audience: String,
    /// The sidecar's resources.
    #[serde(default = "resources")]
    pub resources: Value,
}

fn if_not_present() -> String {
    "IfNotPresent".into()
}

const fn proxy_uid() -> u32 {
    62_620
}

const fn outbound_port() -> u16 {
    15_001
}

const fn inbound_port() -> u16 {
    15_006
}

const fn health_port() -> u16 {
    15_021
}

fn audience() -> String {
    "aegis-ca".into()
}

fn resources() -> Value {
    json!({
        "requests": { "cpu": "50m", "memory": "64Mi" },
        "limits": { "memory": "256Mi" },
    })
}

/// Why a pod of an enrolled namespace may not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// In one word; a label of metrics.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// An injected pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Puts the sidecar into a pod.
///
/// # Errors
/// When the pod could undo it.
pub fn inject(pod: &Value, config: &InjectConfig) -> Result<Injected, Refusal> {
    let mut pod = pod.clone();
    without_ours(&mut pod);
    refuse::check(&pod, config)?;
    let (declared, warnings) = declared::read(&pod)?;
    let members = pod.as_object_mut().ok_or_else(|| malformed("pod"))?;
    let spec = object(members, "spec")?;
    for name in ["initContainers", "containers"] {
        for container in list(spec, name)? {
            confine(container)?;
        }
    }
    let inits = list(spec, "initContainers")?;
    let redirect = match config.redirect {
        Redirect::Init => sidecar::redirect(config, &declared),
        Redirect::Node => sidecar::await_redirect(config),
    };
    inits.splice(0..0, [sidecar::proxy(config, &declared), redirect]);
    list(spec, "volumes")?.extend(sidecar::volumes(config));
    let first = list(spec, "containers")?.first().map(|first| name_of(first).to_owned());
    annotate(members, config, first.as_deref())?;
    Ok(Injected { pod, warnings })
}

/// The nftables rules of an injected pod, by what it declares.
///
/// # Errors
/// When what it declares cannot be read.
pub fn redirect_rules(pod: &Value, config: &InjectConfig) -> Result<String, Refusal> {
    let (declared, _) = declared::read(pod)?;
    Ok(rules::ruleset(config, &declared))
}

/// The patch from one pod to the other, as an admission answer carries it.
#[must_use]
pub fn patch(before: &Value, after: &Value) -> json_patch::Patch {
    json_patch::diff(before, after)
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Takes away what an earlier injection, or an author who imitates one, has put where Aegis' own
/// things go: what is there afterwards is always Aegis' own.
fn without_ours(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(inits) = spec.get_mut("initContainers").and_then(Value::as_array_mut) {
        inits.retain(|container| ![PROXY, REDIRECT, AWAIT].contains(&name_of(container)));
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        let ours = [TOKEN_VOLUME, STATE_VOLUME, SOCKET_VOLUME];
        volumes.retain(|volume| !ours.contains(&name_of(volume)));
    }
}

/// Takes from a container of the author what could undo the redirect, and gives it the sockets.
fn confine(container: &mut Value) -> Result<(), Refusal> {
    let name = name_of(container).to_owned();
    let Some(members) = container.as_object_mut() else {
        return Err(Refusal::new("Malformed", "a container is not an object"));
    };
    let security = object(members, "securityContext")?;
    // A program that may change its user could become the sidecar's, whose traffic is let through.
    security.entry("allowPrivilegeEscalation").or_insert(json!(false));
    let capabilities = object(security, "capabilities")?;
    let drop = list(capabilities, "drop")?;
    if !drop.iter().any(|one| one == "ALL") {
        for capability in ["NET_RAW", "SETGID", "SETUID"] {
            if !drop.iter().any(|one| one == capability) {
                drop.push(json!(capability));
            }
        }
    }
    let mounts = list(members, "volumeMounts")?;
    let ours = |mount: &Value| mount.get("name").and_then(Value::as_str) == Some(SOCKET_VOLUME);
    mounts.retain(|mount| !ours(mount));
    if mounts.iter().any(|mount| covers(mount, SOCKET_FOLDER)) {
        return Err(Refusal::new(
            "MountConflict",
            format!(
                "container `{name}` mounts something at {SOCKET_FOLDER}, where Aegis' sockets are; mount it elsewhere"
            ),
        ));
    }
    mounts.push(json!({ "name": SOCKET_VOLUME, "mountPath": SOCKET_FOLDER, "readOnly": true }));
    let env = list(members, "env")?;
    if !env.iter().any(|variable| name_of(variable) == "SPIFFE_ENDPOINT_SOCKET") {
        env.push(json!({
            "name": "SPIFFE_ENDPOINT_SOCKET",
            "value": format!("unix://{SOCKET_FOLDER}/workload.sock"),
        }));
    }
    Ok(())
}

/// Whether a mount lies at, above or below a folder.
fn covers(mount: &Value, folder: &str) -> bool {
    let path = mount.get("mountPath").and_then(Value::as_str).unwrap_or_default();
    let path = path.trim_end_matches('/');
    let within = |inner: &str, outer: &str| {
        inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    !path.is_empty() && (within(path, folder) || within(folder, path))
}

fn malformed(name: &str) -> Refusal {
    Refusal::new("Malformed", format!("`{name}` has another shape than a pod's"))
}

/// The object under `name`, made if it is not there.
fn object<'a>(
    members: &'a mut Map<String, Value>,
    name: &str,
) -> Result<&'a mut Map<String, Value>, Refusal> {
    if members.get(name).is_none_or(Value::is_null) {
        members.insert(name.to_owned(), json!({}));
    }
    members.get_mut(name).and_then(Value::as_object_mut).ok_or_else(|| malformed(name))
}

/// The list under `name`, made if it is not there.
fn list<'a>(
    members: &'a mut Map<String, Value>,
    name: &str,
) -> Result<&'a mut Vec<Value>, Refusal> {
    if members.get(name).is_none_or(Value::is_null) {
        members.insert(name.to_owned(), json!([]));
    }
    members.get_mut(name).and_then(Value::as_array_mut).ok_or_else(|| malformed(name))
}

fn annotate(
    pod: &mut Map<String, Value>,
    config: &InjectConfig,
    first: Option<&str>,
) -> Result<(), Refusal> {
    let annotations = object(object(pod, "metadata")?, "annotations")?;
    let redirect = match config.redirect {
        Redirect::Init => "init",
        Redirect::Node => "node",
    };
    let told = json!({ "image": config.image, "uid": config.uid, "redirect": redirect });
    annotations.insert(INJECTED.into(), json!(told.to_string()));
    if let Some(first) = first {
        // `kubectl logs` and `exec` go on to mean the application.
        annotations
            .entry("kubectl.kubernetes.io/default-container")
            .or_insert_with(|| json!(first));
    }
    Ok(())
}
