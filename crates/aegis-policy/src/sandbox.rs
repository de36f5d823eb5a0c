//! Policy tests: a folder of policies with cases that say what must come out.
//!
//! A pack is a folder with
//!
//! - `policy.yaml`: one or more documents of kind AgentPolicy or ClusterAgentPolicy;
//! - `sandbox/*.yaml`: a list of cases, each a request and what is expected of it;
//! - `*_test.rego`: unit tests of raw Rego, which `opa test` runs together with the raw modules.
//!
//! A case:
//!
//! ```yaml
//! - name: dropping a table is refused
//!   request:
//!     agent: spiffe://acme.example/ns/shop/sa/bot/agent/buyer   # the default
//!     tool: write_query
//!     arguments: { query: "DROP TABLE users" }
//!   expect: { effect: deny, rule: no-drop }
//! ```
//!
//! Unknown fields are refused, so that a misspelt expectation is not a passed one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use aegis_core::{
    AgentId, Digest, Timestamp,
    action::{ActionKind, Protocol},
    capability::Capability,
    input::{ActionInput, ContextInput, Input, PrincipalInput, ProvenanceInput},
    policy::{Effect, Obligation, ObligationKind, PolicySpec, Scope},
    risk::{Grade, PerMille, Risk},
    tier::Tier,
    trust::TrustScore,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    compile::Compiler,
    engine::{PolicyEngine, PolicyStatus},
    opa::OpaError,
    policy::{Policy, PolicyId, PolicyKind},
    verdict::Evaluation,
};

/// Why a pack cannot be tested.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// `opa` is of no use.
    #[error(transparent)]
    Opa(#[from] OpaError),
    /// There is nothing to test.
    #[error("{0} holds no cases: add `sandbox/<name>.yaml`")]
    Empty(PathBuf),
}

/// What became of a pack.
#[derive(Debug)]
pub struct PackReport {
    /// How each policy compiled.
    pub policies: Vec<PolicyStatus>,
    /// What `opa test` said, where there are Rego tests: whether they pass, and its output.
    pub rego: Option<(bool, String)>,
    /// The cases, in order.
    pub cases: Vec<CaseReport>,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseReport {
    /// The file it stands in.
    pub file: PathBuf,
    /// Its name.
    pub name: String,
    /// What is not as expected; `None` where all is.
    pub problem: Option<String>,
}

/// The envelope of a policy, as far as a test needs it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    kind: PolicyKind,
    metadata: Metadata,
    spec: PolicySpec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    request: Request,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Request {
    agent: AgentId,
    sponsor: String,
    trust: u64,
    capabilities: Vec<Capability>,
    kind: ActionKind,
    protocol: Protocol,
    method: String,
    server: String,
    server_namespace: Option<String>,
    tool: Option<String>,
    resource: Option<String>,
    endpoint: Option<String>,
    arguments: Value,
    scope: Scope,
    intent: Option<String>,
    approvals: u32,
    mfa: bool,
    rate: u32,
    signer: Option<AgentId>,
    signer_trust: u64,
    risk: u64,
    now: Timestamp,
    /// How many times the same request was allowed just before.
    after: u32,
}

impl Default for Request {
    fn default() -> Self {
        let agent = "spiffe://acme.example/ns/default/sa/default/agent/agent".parse();
        #[expect(clippy::expect_used, reason = "a constant that a test reads")]
        let agent = agent.expect("the default agent is one");
        Self {
            agent,
            sponsor: "ada@acme.example".to_owned(),
            trust: 700,
            capabilities: Vec::new(),
            kind: ActionKind::ToolCall,
            protocol: Protocol::Mcp,
            method: "tools/call".to_owned(),
            server: "server".to_owned(),
            server_namespace: None,
            tool: None,
            resource: None,
            endpoint: None,
            arguments: Value::Object(serde_json::Map::new()),
            scope: Scope::Mesh,
            intent: None,
            approvals: 0,
            mfa: false,
            rate: 0,
            signer: None,
            signer_trust: 0,
            risk: 0,
            now: Timestamp::from_secs(1_800_000_000),
            after: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    effect: Expected,
    rule: Option<String>,
    reason: Option<String>,
    /// What a list does with it.
    listed: Option<bool>,
    mfa: Option<bool>,
    approvals: Option<u8>,
    audited: Option<Expected>,
    /// Which arguments are kept out of the record, by their paths.
    redacts: Option<Vec<String>>,
}

/// An effect, or none, which denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Allow,
    RequireApproval,
    Deny,
    /// No rule speaks: denied because nothing allows it.
    None,
}

/// Reads the policies of a pack's `policy.yaml`.
///
/// # Errors
/// When a document is none.
pub fn read_policies(path: &Path) -> Result<Vec<Policy>, SandboxError> {
    let failed = |message: String| SandboxError::File { path: path.to_owned(), message };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            let Document { kind, metadata, spec, .. } =
                Document::deserialize(document).map_err(|error| failed(error.to_string()))?;
            let namespace = match kind {
                PolicyKind::ClusterAgentPolicy => None,
                PolicyKind::AgentPolicy => {
                    Some(metadata.namespace.unwrap_or_else(|| "default".to_owned()))
                }
            };
            Ok(Policy { id: PolicyId { kind, namespace, name: metadata.name }, spec })
        })
        .collect()
}

/// Runs a pack's tests through an engine that holds nothing else.
///
/// # Errors
/// When the pack cannot be read. A case that does not hold is in the report.
pub fn run_pack(
    folder: &Path,
    compiler: &Compiler,
    engine: &dyn Fn() -> PolicyEngine,
) -> Result<PackReport, SandboxError> {
    let policies = read_policies(&folder.join("policy.yaml"))?;
    let ready = engine();
    let statuses = ready.reload(compiler, &policies)?;
    let mut cases = Vec::new();
    for file in files(&folder.join("sandbox"), ".yaml")? {
        let failed = |message: String| SandboxError::File { path: file.clone(), message };
        let text = fs::read_to_string(&file).map_err(|error| failed(error.to_string()))?;
        let list: Vec<Case> =
            serde_yaml_ng::from_str(&text).map_err(|error| failed(error.to_string()))?;
        for case in list {
            let problem = check(&ready, &case);
            cases.push(CaseReport { file: file.clone(), name: case.name, problem });
        }
    }
    if cases.is_empty() {
        return Err(SandboxError::Empty(folder.to_owned()));
    }
    let tests = files(folder, "_test.rego")?;
    let raw: Vec<&str> = policies.iter().filter_map(|policy| policy.spec.rego.as_deref()).collect();
    let rego = match tests.is_empty() {
        true => None,
        false => Some(compiler.opa().test(&raw, &tests)?),
    };
    Ok(PackReport { policies: statuses, rego, cases })
}

/// What an engine says to one request: to the act itself, and to naming it in a list.
#[derive(Clone, Debug)]
pub struct Trial {
    /// To the act.
    pub act: Evaluation,
    /// To the list.
    pub list: Evaluation,
}

/// Tries one request, a file that is written as a case's `request` is.
///
/// # Errors
/// When the file is none.
pub fn try_request(engine: &PolicyEngine, path: &Path) -> Result<Trial, SandboxError> {
    let failed = |message: String| SandboxError::File { path: path.to_owned(), message };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let request: Request =
        serde_yaml_ng::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let input = input(&request);
    let namespace = request.server_namespace.as_deref();
    Ok(Trial { act: engine.evaluate(&input, namespace), list: engine.may_allow(&input, namespace) })
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, SandboxError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let failed = |error: std::io::Error| SandboxError::File {
        path: folder.to_owned(),
        message: error.to_string(),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn check(engine: &PolicyEngine, case: &Case) -> Option<String> {
    let request = &case.request;
    let input = input(request);
    let namespace = request.server_namespace.as_deref();
    for _ in 0..request.after {
        let before = engine.evaluate(&input, namespace);
        if !engine.take(&before, &input) {
            return Some("one of the requests before it is over the rate limit".to_owned());
        }
    }
    let evaluation = engine.evaluate(&input, namespace);
    let listed = engine.may_allow(&input, namespace);
    differs(&case.expect, &evaluation, &listed)
}

fn differs(expect: &Expect, evaluation: &Evaluation, listed: &Evaluation) -> Option<String> {
    if let Some(error) = evaluation.findings.iter().find_map(|finding| finding.error.as_ref()) {
        return Some(error.to_string());
    }
    let spoken: Vec<&str> = evaluation.determining().map(|f| f.rule.name.as_str()).collect();
    let effect = Expected::of(evaluation.effect);
    if effect != expect.effect {
        return Some(format!("expected {:?}, got {effect:?} by {spoken:?}", expect.effect));
    }
    if let Some(rule) = &expect.rule
        && !spoken.contains(&rule.as_str())
    {
        return Some(format!("expected rule `{rule}` to decide, but {spoken:?} did"));
    }
    let reasons: Vec<&str> = evaluation.determining().filter_map(|f| f.reason()).collect();
    if let Some(reason) = &expect.reason
        && !reasons.contains(&reason.as_str())
    {
        return Some(format!("expected the reason `{reason}`, got {reasons:?}"));
    }
    let shown = matches!(listed.effect, Some(Effect::Allow | Effect::RequireApproval));
    let wrong = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
        Some(format!("expected {what} {expected:?}, got {got:?}"))
    };
    match expect {
        Expect { listed: Some(want), .. } if *want != shown => wrong("listed", want, &shown),
        Expect { mfa: Some(want), .. } if *want != evaluation.require_mfa() => {
            wrong("mfa", want, &evaluation.require_mfa())
        }
        Expect { approvals: Some(want), .. } if *want != evaluation.approvals() => {
            wrong("approvals", want, &evaluation.approvals())
        }
        Expect { audited: Some(want), .. } if *want != Expected::of(evaluation.audited) => {
            wrong("audited", want, &evaluation.audited)
        }
        Expect { redacts: Some(want), .. } if *want != redacted(evaluation) => {
            wrong("redacts", want, &redacted(evaluation))
        }
        _ => None,
    }
}

/// Which arguments are kept out of the record. A module that allows and denies wants it twice.
fn redacted(evaluation: &Evaluation) -> Vec<String> {
    let arguments = |one: &&Obligation| one.kind == ObligationKind::RedactArgument;
    let wanted: BTreeSet<&String> =
        evaluation.obligations().filter(arguments).map(|one| &one.target).collect();
    wanted.into_iter().cloned().collect()
}

impl Expected {
    const fn of(effect: Option<Effect>) -> Self {
        match effect {
            Some(Effect::Allow) => Self::Allow,
            Some(Effect::RequireApproval) => Self::RequireApproval,
            Some(Effect::Deny) => Self::Deny,
            None => Self::None,
        }
    }
}

fn input(request: &Request) -> Input<'_> {
    let score = PerMille::clamped(request.risk);
    Input {
        action: ActionInput {
            kind: request.kind,
            protocol: request.protocol,
            method: &request.method,
            server: &request.server,
            tool: request.tool.as_deref(),
            resource: request.resource.as_deref(),
            endpoint: request.endpoint.as_deref(),
            arguments: &request.arguments,
            digest: Digest::of(b"sandbox"),
        },
        principal: PrincipalInput {
            id: &request.agent,
            name: request.agent.name(),
            namespace: request.agent.namespace().unwrap_or_default(),
            sponsor: &request.sponsor,
            capabilities: &request.capabilities,
            delegation: &[],
            trust: TrustScore::clamped(request.trust),
        },
        provenance: request.signer.as_ref().map(|signer| ProvenanceInput {
            signer,
            trust: TrustScore::clamped(request.signer_trust),
            signed: "content",
        }),
        context: ContextInput {
            scope: request.scope,
            intent: request.intent.as_deref(),
            session: None,
            approvals: request.approvals,
            mfa: request.mfa,
            rate: request.rate,
            tier: Tier::Local,
            risk: Risk { score, scope: score, sensitivity: score, grade: Grade::of(score) },
            now: request.now,
            now_secs: request.now.as_secs(),
        },
    }
}
