//! Many shapes of pods, and what injection makes of each: `AEGIS_BLESS=1` writes the golden file
//! anew, to be read before it is committed.

use std::{fmt::Write as _, fs, path::Path};

use aegis_operator::inject::{InjectConfig, Redirect, inject, patch};
use proptest::prelude::*;
use serde::Deserialize as _;
use serde_json::{Value, json};

fn config() -> InjectConfig {
    serde_json::from_value(json!({
        "image": "registry.acme.example/aegis:1",
        "args": ["sidecar"],
        "env": { "AEGIS_TRUST_DOMAIN": "acme.example" },
    }))
    .unwrap()
}

fn pods() -> Vec<Value> {
    let text = include_str!("pods.yaml");
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|one| Value::deserialize(one).unwrap())
        .collect()
}

fn lines(value: &Value) -> String {
    serde_json::to_string(value).unwrap()
}

/// What injection did, in a form that people can review: containers in order, each author's
/// container as it is now, what was declared, volumes and annotations.
fn told(pod: &Value) -> String {
    let mut text = String::new();
    match inject(pod, &config()) {
        Err(refusal) => {
            let _ = writeln!(text, "  refused  {}: {}", refusal.reason, refusal.message);
        }
        Ok(injected) => {
            let spec = &injected.pod["spec"];
            for warning in &injected.warnings {
                let _ = writeln!(text, "  warning  {warning}");
            }
            for list in ["initContainers", "containers"] {
                for container in spec[list].as_array().unwrap() {
                    let name = container["name"].as_str().unwrap();
                    if name.starts_with("aegis-") {
                        let _ = writeln!(text, "  {list}  {name}");
                    } else {
                        let _ = writeln!(text, "  {list}  {}", lines(container));
                    }
                }
            }
            let env = spec["initContainers"][0]["env"].as_array().unwrap();
            for name in ["AEGIS_MCP_PORTS", "AEGIS_A2A_PORTS", "AEGIS_PROBES"] {
                let value = &env.iter().find(|one| one["name"] == name).unwrap()["value"];
                if !["", "[]"].contains(&value.as_str().unwrap()) {
                    let _ = writeln!(text, "  {name}  {}", value.as_str().unwrap());
                }
            }
            let names =
                spec["volumes"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
            let _ = writeln!(text, "  volumes  {}", names.collect::<Vec<_>>().join(" "));
            let _ = writeln!(
                text,
                "  annotations  {}",
                lines(&injected.pod["metadata"]["annotations"])
            );
        }
    }
    text
}

#[test]
fn each_shape_comes_out_as_it_is_written_down() {
    let mut told_all = String::new();
    for (pod, part) in pods().iter().zip(include_str!("pods.yaml").split("---\n").skip(1)) {
        let name = part.lines().next().unwrap().trim_start_matches("# ");
        let _ = write!(told_all, "{name}\n{}", told(pod));
    }
    let injected = inject(&pods()[0], &config()).unwrap().pod;
    let _ = write!(
        told_all,
        "the first one in full\n{}\n",
        serde_json::to_string_pretty(&injected).unwrap()
    );
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/pods.golden");
    if std::env::var_os("AEGIS_BLESS").is_some() {
        fs::write(&golden, &told_all).unwrap();
    }
    assert!(pods().len() >= 60);
    let golden = fs::read_to_string(golden).unwrap();
    for (told, golden) in told_all.lines().zip(golden.lines()) {
        assert_eq!(told, golden);
    }
    assert_eq!(told_all, golden);
}

#[test]
fn injecting_twice_is_injecting_once() {
    for redirect in [Redirect::Init, Redirect::Node] {
        let config = InjectConfig { redirect, ..config() };
        for pod in pods() {
            if let Ok(once) = inject(&pod, &config) {
                let twice = inject(&once.pod, &config).unwrap();
                assert_eq!(once.pod, twice.pod);
                assert!(patch(&once.pod, &twice.pod).is_empty());
            }
        }
    }
}

/// The patch, applied by the code that others use, gives the pod that was meant.
#[test]
fn the_patch_gives_the_injected_pod() {
    for pod in pods() {
        if let Ok(injected) = inject(&pod, &config()) {
            let mut patched = pod.clone();
            json_patch::patch(&mut patched, &patch(&pod, &injected.pod)).unwrap();
            assert_eq!(patched, injected.pod);
        }
    }
}

/// Every field that an author wrote is there afterwards, with the same value, in the same order.
#[test]
fn nothing_of_the_authors_is_lost() {
    fn within(before: &Value, after: &Value, path: &str) {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => {
                for (name, value) in before.iter().filter(|(_, value)| !value.is_null()) {
                    within(
                        value,
                        after.get(name).unwrap_or(&Value::Null),
                        &format!("{path}/{name}"),
                    );
                }
            }
            (Value::Array(before), Value::Array(after)) => {
                let mut rest = after.iter();
                for one in before {
                    let found = rest.any(|other| match one.get("name") {
                        Some(name) => {
                            let same = other.get("name") == Some(name);
                            if same {
                                within(one, other, path);
                            }
                            same
                        }
                        None => other == one,
                    });
                    assert!(found, "{path} lost {one}");
                }
            }
            _ => assert_eq!(before, after, "{path}"),
        }
    }
    for pod in pods() {
        let imitates = pod.to_string().contains("\"name\":\"aegis-");
        if let (Ok(injected), false) = (inject(&pod, &config()), imitates) {
            within(&pod, &injected.pod, "");
        }
    }
}

#[test]
fn an_imitated_sidecar_is_replaced() {
    let pod = json!({ "metadata": {}, "spec": {
        "initContainers": [{ "name": "aegis-proxy", "image": "evil" }],
        "containers": [{ "name": "app", "image": "a" }],
    }});
    let injected = inject(&pod, &config()).unwrap().pod;
    assert_eq!(injected["spec"]["initContainers"][0]["image"], "registry.acme.example/aegis:1");
    assert_eq!(injected["spec"]["initContainers"].as_array().unwrap().len(), 2);
}

proptest! {
    /// Whatever arrives as a pod, injection answers, and an injected pod is stable.
    #[test]
    fn nothing_that_arrives_panics(
        spec in prop::collection::btree_map("containers|initContainers|volumes|securityContext|hostNetwork|os", arbitrary(), 0..5),
        annotations in arbitrary(),
    ) {
        let pod = json!({ "metadata": { "annotations": annotations }, "spec": spec });
        if let Ok(once) = inject(&pod, &config()) {
            prop_assert_eq!(&inject(&once.pod, &config()).unwrap().pod, &once.pod);
        }
    }
}

fn arbitrary() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        "[a-z/-]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(
                "name|image|ports|containerPort|securityContext|capabilities|add|drop|volumeMounts|env|mountPath|readinessProbe|httpGet|port",
                inner,
                0..4
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
