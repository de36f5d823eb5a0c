//! Reading resources from YAML: one file, or a folder of them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::{Path, PathBuf},
};

use aegis_core::{policy::PolicySpec, thresholds::Thresholds};
use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml_ng::Value;

use crate::{
    AgentIdentitySpec, AgentUpstreamSpec,
    nearest::did_you_mean,
    place::{self, Place},
    resource::{API_VERSION, DEFAULT_NAMESPACE, Loaded, Metadata, Resource, Resources},
};

/// The largest file that is read. Bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The kinds that a folder may hold.
const KINDS: [&str; 6] = [
    "AgentPolicy",
    "ClusterAgentPolicy",
    "AgentIdentity",
    "TrustThreshold",
    "ClusterTrustThreshold",
    "AgentUpstream",
];

/// Why a document is not a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct LoadError {
    /// The file and, where known, line and column.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "apiVersion, kind, metadata and spec")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    /// Read back from a cluster; not interpreted.
    #[serde(default, rename = "status")]
    _status: Option<Value>,
}

/// Reads every `*.yaml` and `*.yml` in `folder`, in name order, subfolders included.
///
/// Returns what is sound and what is not: a broken document never hides the others.
///
/// # Errors
/// Only when the folder itself cannot be read.
pub fn load_folder(folder: &Path) -> Result<(Resources, Vec<LoadError>), LoadError> {
    let mut files = Vec::new();
    collect(folder, &mut files, 0).map_err(|error| LoadError {
        place: folder.display().to_string(),
        message: format!("cannot read the folder: {error}"),
    })?;
    files.sort();
    let mut resources = Resources::default();
    let mut errors = Vec::new();
    let mut seen = BTreeMap::new();
    for file in files {
        let place = file.display().to_string();
        let text = match read(&file) {
            Ok(text) => text,
            Err(message) => {
                errors.push(LoadError { place, message });
                continue;
            }
        };
        for document in parse_documents(&place, &text) {
            match document.and_then(|loaded| first_of_its_name(loaded, &mut seen)) {
                Ok(loaded) => resources.push(loaded),
                Err(error) => errors.push(error),
            }
        }
    }
    Ok((resources, errors))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>, depth: u8) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if hidden {
            continue;
        } else if path.is_dir() && depth < 8 {
            // Sandboxes hold requests and expectations, not resources.
            if path.file_name().is_none_or(|name| name != "sandbox") {
                collect(&path, files, depth + 1)?;
            }
        } else if yaml {
            files.push(path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<String, String> {
    let size = fs::metadata(file).map_err(|e| format!("cannot be read: {e}"))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("is {size} bytes; the limit is {MAX_FILE_BYTES}: split it"));
    }
    fs::read_to_string(file).map_err(|e| format!("cannot be read as UTF-8 text: {e}"))
}

fn first_of_its_name(
    loaded: Loaded,
    seen: &mut BTreeMap<(&'static str, String, String), Place>,
) -> Result<Loaded, LoadError> {
    let metadata = loaded.metadata();
    let namespace = if loaded.is_cluster_scoped() {
        String::new()
    } else {
        metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.into())
    };
    let (kind, name) = (loaded.kind(), metadata.name.clone());
    match seen.entry((kind, namespace, name.clone())) {
        Entry::Vacant(entry) => {
            entry.insert(loaded.place().clone());
            Ok(loaded)
        }
        Entry::Occupied(first) => {
            let first = first.get();
            let message =
                format!("{kind} `{name}` is defined twice, first in {first}; rename or remove one");
            Err(LoadError { place: loaded.place().to_string(), message })
        }
    }
}

/// Parses the documents of one YAML text. `file` is how errors name it.
#[must_use]
pub fn parse_documents(file: &str, text: &str) -> Vec<Result<Loaded, LoadError>> {
    let mut parsed = Vec::new();
    let placed = |at: Option<(usize, usize)>| {
        at.map_or_else(|| file.to_owned(), |(line, column)| format!("{file}:{line}:{column}"))
    };
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
                let place = Place::of(file, text, number);
                parsed.push(resource(value, place).map_err(|message| {
                    match explain(&kind, text, number) {
                        Some((at, said)) => LoadError { place: placed(Some(at)), message: said },
                        None => {
                            let at = place::locate_named(text, number, &message);
                            LoadError { place: placed(at), message }
                        }
                    }
                }));
            }
            Err(error) => {
                // After a syntax error the stream has no more documents to offer.
                let at = error.location().map(|at| (at.line(), at.column()));
                let message = format!("is not YAML: {error}");
                parsed.push(Err(LoadError { place: placed(at), message }));
                break;
            }
        }
    }
    parsed
}

/// What is wrong with a document that does not have the shape of its kind, and where.
fn explain(kind: &str, text: &str, document: usize) -> Option<((usize, usize), String)> {
    let (at, said) = match kind {
        "AgentPolicy" | "ClusterAgentPolicy" => place::explain::<PolicySpec>(text, document),
        "AgentIdentity" => place::explain::<AgentIdentitySpec>(text, document),
        "TrustThreshold" | "ClusterTrustThreshold" => place::explain::<Thresholds>(text, document),
        "AgentUpstream" => place::explain::<AgentUpstreamSpec>(text, document),
        _ => None,
    }?;
    Some((at, format!("{kind}: {said}")))
}

fn resource(value: Value, place: Place) -> Result<Loaded, String> {
    let envelope: Envelope =
        serde_yaml_ng::from_value(value).map_err(|error| format!("is not a resource: {error}"))?;
    if envelope.api_version != API_VERSION {
        return Err(format!("apiVersion is `{}`; expected `{API_VERSION}`", envelope.api_version));
    }
    check_metadata(&envelope.metadata)?;
    let Envelope { kind, metadata, spec, .. } = envelope;
    let at = format!("{kind} `{}`", metadata.name);
    let loaded = match kind.as_str() {
        "AgentPolicy" => Loaded::Policy(with_spec(metadata, spec, place, &at)?),
        "ClusterAgentPolicy" => Loaded::ClusterPolicy(with_spec(metadata, spec, place, &at)?),
        "AgentIdentity" => Loaded::Identity(with_spec(metadata, spec, place, &at)?),
        "TrustThreshold" => Loaded::Threshold(with_spec(metadata, spec, place, &at)?),
        "ClusterTrustThreshold" => Loaded::ClusterThreshold(with_spec(metadata, spec, place, &at)?),
        "AgentUpstream" => Loaded::Upstream(with_spec(metadata, spec, place, &at)?),
        other => {
            return Err(format!(
                "kind is `{other}`; expected {}{}",
                KINDS.join(", "),
                did_you_mean(other, KINDS)
            ));
        }
    };
    validate(&loaded).map_err(|message| format!("{at}: {message}"))?;
    Ok(loaded)
}

fn with_spec<S: DeserializeOwned>(
    metadata: Metadata,
    spec: Value,
    place: Place,
    at: &str,
) -> Result<Resource<S>, String> {
    let spec = if spec.is_null() { Value::Mapping(serde_yaml_ng::Mapping::new()) } else { spec };
    let spec = serde_yaml_ng::from_value(spec).map_err(|error| format!("{at}: spec: {error}"))?;
    Ok(Resource { metadata, spec, place })
}

fn validate(loaded: &Loaded) -> Result<(), String> {
    match loaded {
        Loaded::Policy(policy) if !policy.spec.selector.namespaces.is_empty() => Err(
            "`spec.selector.namespaces` is only for a ClusterAgentPolicy; an AgentPolicy speaks about its own namespace".into(),
        ),
        Loaded::Policy(_) | Loaded::ClusterPolicy(_) => Ok(()),
        Loaded::Identity(identity) => identity.spec.validate(),
        Loaded::Threshold(threshold) | Loaded::ClusterThreshold(threshold) => {
            threshold.spec.validate().map_err(|message| format!("spec: {message}"))
        }
        Loaded::Upstream(upstream) => upstream.spec.validate(),
    }
}

/// Whether a text can name something: an RFC 1123 label.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 63
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || *b == b'-')
}

/// Names become path segments of SPIFFE IDs, file names and labels: RFC 1123 labels only.
fn check_metadata(metadata: &Metadata) -> Result<(), String> {
    for (field, text) in
        [("name", Some(&metadata.name)), ("namespace", metadata.namespace.as_ref())]
    {
        if text.is_some_and(|text| !is_label(text)) {
            return Err(format!(
                "metadata.{field} is `{}`; expected lower-case letters, digits and `-`, at most 63",
                text.map_or("", String::as_str)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Loaded, LoadError> {
        let mut parsed = parse_documents("test.yaml", text);
        assert_eq!(parsed.len(), 1, "{parsed:?}");
        parsed.remove(0)
    }

    fn upstream(spec: &str) -> Result<Loaded, LoadError> {
        one(&format!(
            "apiVersion: {API_VERSION}\nkind: AgentUpstream\nmetadata: {{name: x}}\nspec: {spec}\n"
        ))
    }

    #[test]
    fn several_documents_in_one_file() {
        let text = format!(
            "apiVersion: {API_VERSION}\nkind: TrustThreshold\nmetadata: {{name: a}}\n---\n---\napiVersion: {API_VERSION}\nkind: AgentUpstream\nmetadata: {{name: b, namespace: shop}}\nspec: {{url: 'http://127.0.0.1:1/mcp'}}\n"
        );
        let parsed: Vec<_> = parse_documents("t", &text).into_iter().map(Result::unwrap).collect();
        assert_eq!(
            parsed.iter().map(Loaded::kind).collect::<Vec<_>>(),
            ["TrustThreshold", "AgentUpstream"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("kind: X", "missing field"),
            (
                "apiVersion: v1\nkind: AgentPolicy\nmetadata: {name: a}",
                "expected `aegis.dev/v1alpha1`",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}",
                "expected AgentPolicy,",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: A_b}",
                "metadata.name is `A_b`",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: a}\nspec: {rulez: []}",
                "unknown field `rulez`",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: a}\nspec: {mode: shadow}",
                "spec.mode: unknown value `shadow`; expected `enforce`, `audit`",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: a}\nspec: {selector: {namespaces: [x]}}",
                "only for a ClusterAgentPolicy",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: TrustThreshold\nmetadata: {name: a}\nspec: {tMin: 0}",
                "`tMin` is 0",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: TrustThreshold\nmetadata: {name: a}\nspec: {tMin: 1001}",
                "at most 1000",
            ),
            (
                "apiVersion: aegis.dev/v1alpha1\nkind: AgentIdentity\nmetadata: {name: a}\nspec: {sponsor: ada@acme.example, selector: {unix: {}}}",
                "would match every process",
            ),
            ("a: [", "is not YAML"),
        ];
        for (text, expected) in cases {
            let error = one(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nlacks {expected}");
            assert!(error.starts_with("test.yaml:"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_line_and_the_word_that_was_meant() {
        let head = format!("# first\n---\napiVersion: {API_VERSION}\nkind: AgentPolicy\n");
        let rules = "metadata: {name: a}\nspec:\n  rules:\n    - {name: b, effect: denny}\n";
        for (text, place, said) in [
            (format!("{head}{rules}"), "test.yaml:8:25: AgentPolicy: ", "did you mean `deny`?"),
            (
                format!("{head}metadata: {{name: A_b}}"),
                "test.yaml:5:18: ",
                "metadata.name is `A_b`",
            ),
            (
                format!("{head}metadata: {{name: a}}").replace("kind: AgentP", "kind: AgntP"),
                "test.yaml:4:7: ",
                "did you mean `AgentPolicy`?",
            ),
            (
                format!("{head}metadata: {{name: a}}\nspec:\n  selector: {{namespaces: [x]}}"),
                "test.yaml:7:26: ",
                "only for a ClusterAgentPolicy",
            ),
            (
                format!(
                    "apiVersion: {API_VERSION}\nkind: TrustThreshold\nmetadata: {{name: a}}\nspec:\n  tMin: 0"
                ),
                "test.yaml:5:9: ",
                "`tMin` is 0",
            ),
        ] {
            let error = one(&text).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_upstream_has_one_address() {
        assert!(upstream("{url: 'https://x.example/mcp'}").is_ok());
        assert!(upstream("{command: {program: npx}}").is_ok());
        assert!(
            upstream("{protocol: a2a, url: 'https://x/', a2a: {extensions: ['urn:x']}}").is_ok()
        );
        for (spec, expected) in [
            ("{}", "one of `spec.url`"),
            ("{url: 'http://x/', command: {program: y}}", "exclude each other"),
            ("{url: 'ftp://x/'}", "expected http://"),
            ("{url: 'https://user:secret@x/'}", "without credentials"),
            ("{url: 'http://x/', listen: '0.0.0.0:80'}", "loopback"),
            ("{url: 'http://x/', roots: /ca.pem}", "needs an https://"),
            ("{protocol: a2a, command: {program: y}}", "`spec.protocol: a2a` needs"),
            ("{url: 'http://x/', a2a: {webhookHosts: [x]}}", "`spec.a2a` needs"),
        ] {
            let error = upstream(spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn a_broken_document_does_not_hide_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let sound =
            format!("apiVersion: {API_VERSION}\nkind: AgentPolicy\nmetadata: {{name: a}}\n");
        fs::write(folder.path().join("1.yaml"), "nonsense").unwrap();
        fs::write(folder.path().join("2.yaml"), &sound).unwrap();
        fs::write(folder.path().join("3.yml"), &sound).unwrap();
        fs::write(folder.path().join("4.txt"), "not read").unwrap();
        let (resources, errors) = load_folder(folder.path()).unwrap();
        assert_eq!(resources.policies.len(), 1);
        assert_eq!(errors.len(), 2);
        let first = folder.path().join("2.yaml:1").display().to_string();
        assert!(errors[1].message.contains("defined twice, first in"), "{}", errors[1]);
        assert!(errors[1].message.contains(&first), "{}", errors[1]);
        assert!(load_folder(Path::new("/nonexistent")).is_err());
    }
}
