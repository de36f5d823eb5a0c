//! The containers and volumes that are added.

use serde_json::{Value, json};

use super::{
    AWAIT, Declared, InjectConfig, PROXY, REDIRECT, SOCKET_FOLDER, SOCKET_VOLUME, STATE_VOLUME,
    TOKEN_VOLUME, rules,
};

/// How long a token for the CA lives; the kubelet renews it. Seconds, the least that it takes.
const TOKEN_SECONDS: u32 = 600;

/// The sidecar: a native one, first in order, so that what starts later is governed from the start
/// and Jobs end.
pub(super) fn proxy(config: &InjectConfig, declared: &Declared) -> Value {
    let health = |path: &str| json!({ "path": path, "port": config.health_port });
    json!({
        "name": PROXY,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": config.args,
        "restartPolicy": "Always",
        "env": env(config, declared),
        "ports": [{ "name": "aegis-health", "containerPort": config.health_port, "protocol": "TCP" }],
        "startupProbe": { "httpGet": health("/readyz"), "periodSeconds": 1, "failureThreshold": 60 },
        "readinessProbe": { "httpGet": health("/readyz"), "periodSeconds": 5 },
        "resources": config.resources,
        "securityContext": {
            "runAsUser": config.uid,
            "runAsGroup": config.uid,
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": TOKEN_VOLUME, "mountPath": "/var/run/secrets/aegis", "readOnly": true },
            { "name": STATE_VOLUME, "mountPath": "/var/lib/aegis" },
            { "name": SOCKET_VOLUME, "mountPath": SOCKET_FOLDER },
        ],
    })
}

fn env(config: &InjectConfig, declared: &Declared) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let list = |ports: &std::collections::BTreeSet<u16>| {
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("AEGIS_NODE_ADDRESSES", "status.hostIPs"),
    ];
    let values = [
        ("AEGIS_OUTBOUND_PORT", config.outbound_port.to_string()),
        ("AEGIS_INBOUND_PORT", config.inbound_port.to_string()),
        ("AEGIS_HEALTH_PORT", config.health_port.to_string()),
        ("AEGIS_MCP_PORTS", list(&declared.mcp)),
        ("AEGIS_A2A_PORTS", list(&declared.a2a)),
        ("AEGIS_PROBES", serde_json::to_string(&declared.probes).unwrap_or_default()),
    ];
    env.extend(values.into_iter().map(|(name, value)| json!({ "name": name, "value": value })));
    env.extend(config.env.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    env
}

/// What redirects: it runs once, and only it may change the network.
pub(super) fn redirect(config: &InjectConfig, declared: &Declared) -> Value {
    json!({
        "name": REDIRECT,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "command": ["nft"],
        "args": [rules::ruleset(config, declared)],
        "resources": config.resources,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// What keeps everything of the author's from starting before the node agent has redirected. It is not
/// the sidecar's user, whose traffic is let through.
pub(super) fn await_redirect(config: &InjectConfig) -> Value {
    let user = config.uid.saturating_add(1);
    json!({
        "name": AWAIT,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": ["await-redirect", format!("--health-port={}", config.health_port)],
        "resources": config.resources,
        "securityContext": {
            "runAsUser": user,
            "runAsGroup": user,
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// The token for the CA, the sidecar's scratch space, and the sockets: none of them on a disk.
///
/// The kubelet gives the token's file to root, so the sidecar's user reads it as anybody would; it is
/// kept from others by no other container having the volume.
pub(super) fn volumes(config: &InjectConfig) -> Vec<Value> {
    let memory = |name: &str, size: &str| json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": size } });
    vec![
        json!({ "name": TOKEN_VOLUME, "projected": { "defaultMode": 292, "sources": [{ "serviceAccountToken": {
            "audience": config.audience, "expirationSeconds": TOKEN_SECONDS, "path": "token",
        } }] } }),
        memory(STATE_VOLUME, "64Mi"),
        memory(SOCKET_VOLUME, "1Mi"),
    ]
}
