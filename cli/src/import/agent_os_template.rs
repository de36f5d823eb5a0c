//! Agent OS' policy templates: `kernel`, `signals`, `policies` with what they allow, deny, limit and have
//! approved, `network`, `audit`.
//!
//! No engine of Agent OS enforces most of their fields. Here an entry is enforced with everything that
//! narrows it, or it is left out and named: an exception without its condition would allow too much.
//! Within a policy, what it allows is an exception from what it denies; between policies, deny overrides.

use std::collections::BTreeMap;

use aegis_core::policy::{Effect, Mode, Operator};
use serde_json::json;

use super::{
    cases::{Atom, Case, a_tool_call, all_of, field},
    emit::{Imported, Search, wrong_pattern},
    listed::rate,
    narrow::{NO_APPROVERS, narrowed},
    rules::{Drafted, in_order},
    template::Field,
};

/// Other names of what agents do, as the user said that their tools are called.
pub(crate) type ToolNames = BTreeMap<String, Vec<String>>;

const RESULTS: &str =
    "a result is redacted in Aegis, not refused: put `redactResult` on the rules that allow";

/// A file while its policies are read.
struct Reading<'n> {
    names: &'n ToolNames,
    rules: Vec<Drafted>,
    /// For what each of the rules that allow was written: an action of Agent OS.
    allowed: Vec<(String, usize)>,
    searches: Vec<Search>,
    /// Whether what nothing allows is refused by a rule of its own.
    allowlist: bool,
}

/// What a policy says of all its entries.
struct Frame {
    name: String,
    /// What becomes of what it denies.
    denial: Effect,
    approvals: Option<u8>,
    reason: String,
    mode: Mode,
    /// Whether it looks at what goes in, or only at what comes back.
    input: bool,
}

/// Reads a template.
pub(crate) fn read(root: &Field<'_>, names: &ToolNames) -> Imported {
    root.describe(&["description", "name", "version"]);
    let mut name = root.text_of("name").unwrap_or_else(|| "template".into());
    if let Some(kernel) = root.get("kernel") {
        kernel.describe(&["version"]);
        name = kernel.text_of("template").unwrap_or(name);
        if let Some(mode) = kernel.get("mode") {
            mode.must_be(
                &["strict"],
                "Aegis refuses what nothing allows; it has no permissive mode",
            );
        }
    }
    for signal in root.get("signals").map(|signals| signals.list("enabled")).unwrap_or_default() {
        signal.must_be(
            &["SIGSTOP", "SIGKILL", "SIGCONT"],
            "Aegis has refusal, waiting for approval, and approval; other signals go nowhere",
        );
    }
    let mut reading = Reading {
        names,
        rules: Vec::new(),
        allowed: Vec::new(),
        searches: Vec::new(),
        allowlist: false,
    };
    if let Some(network) = root.get("network") {
        reading.network(&network);
    }
    let policies = root.list("policies");
    for policy in &policies {
        reading.policy(policy);
    }
    for policy in &policies {
        policy
            .list("limits")
            .iter()
            .filter(|limit| limit.is_mapping())
            .for_each(|limit| reading.limit(limit));
    }
    if let Some(limits) = root.get("global_limits") {
        reading.total(limits.get("max_requests_per_minute"));
    }
    audit(root);
    settings(root);
    reading.guard_searches();
    root.note("An action of the template is a tool of that name, unless --tool says otherwise.");
    Imported { name, rules: reading.rules, searches: reading.searches, ..Imported::default() }
}

/// What Aegis does in any case, if it is what the template asks for.
fn audit(root: &Field<'_>) {
    let Some(audit) = root.get("audit") else { return };
    let tamper = audit.get("tamper_detection");
    let always = ["enabled", "mandatory", "immutable"].map(|key| audit.get(key));
    let tampering = ["enabled", "chain"].map(|key| tamper.as_ref()?.get(key));
    for field in always.into_iter().chain(tampering).flatten() {
        field.must_be(
            &["true"],
            "Aegis always records, and what it has recorded cannot be altered unseen",
        );
    }
    if let Some(algorithm) = tamper.and_then(|tamper| tamper.get("algorithm")) {
        algorithm.must_be(&["sha256"], "the ledger's tree is of SHA-256");
    }
    if let Some(format) = audit.get("format") {
        format.must_be(&["json"], "entries are JSON");
    }
    for what in audit.list("include") {
        what.must_be(
            &["all_actions", "all_requests", "all_tool_calls", "policy_checks", "approvals", "denials", "rate_limit_events"],
            "Aegis records decisions, outcomes, approvals and changes of policy, identity and trust",
        );
    }
    for what in audit.list("fields") {
        what.must_be(
            &["timestamp", "agent_id", "action", "policy", "result", "session_id", "duration_ms"],
            "an entry of the ledger has no such member",
        );
    }
}

fn settings(root: &Field<'_>) {
    let Some(settings) = root.get("settings") else { return };
    for (key, expected, why) in [
        ("fail_closed", "true", "Aegis always fails closed"),
        ("debug_mode", "false", "Aegis has no mode that decides otherwise"),
        ("auto_continue_on_warn", "false", "what waits for approval does not go on by itself"),
    ] {
        if let Some(field) = settings.get(key) {
            field.must_be(&[expected], why);
        }
    }
}

/// The kind of action that Aegis has for one of Agent OS, with the field that holds its target.
fn kind(action: &str) -> Option<&'static str> {
    Some(match action {
        "file_read" | "read_file" => "file_read",
        "file_write" | "write_file" => "file_write",
        "shell_exec" | "shell" | "run_command" => "shell_exec",
        "http_request" => "http_request",
        _ => return None,
    })
}

impl Reading<'_> {
    fn policy(&mut self, policy: &Field<'_>) {
        policy.describe(&["name", "description", "severity", "category"]);
        let Some(frame) = frame(policy) else { return };
        let allows = policy.list("allow");
        let mut local: Vec<Drafted> = Vec::new();
        let mut actions: Vec<Option<String>> = Vec::new();
        for entry in &allows {
            if let Some((action, cases)) = self.entry(entry, Effect::Allow) {
                local.push(self.drafted(&frame, Effect::Allow, cases));
                actions.push(Some(action));
            }
        }
        for entry in policy.list("deny") {
            if entry.get("action").is_some_and(|action| action.value().as_str() == Some("*"))
                && entry.members().len() == 1
            {
                // What nothing allows is refused anyhow.
                entry.describe(&["action"]);
                self.allowlist = true;
            } else if entry.has("patterns") {
                self.search(&entry, &frame);
            } else if let Some((_, cases)) = self.entry(&entry, frame.denial) {
                local.push(self.drafted(&frame, frame.denial, cases));
                actions.push(None);
            }
        }
        for entry in policy.list("requires_approval").iter().filter(|entry| entry.is_mapping()) {
            if let Some((_, cases)) = self.entry(entry, Effect::RequireApproval) {
                let mut draft = self.drafted(&frame, Effect::RequireApproval, cases);
                draft.approvals = draft.approvals.or_else(|| dual(entry));
                local.push(draft);
                actions.push(None);
            }
        }
        let (kept, failed) = in_order(local);
        for (_, why) in &failed {
            policy.refuse(format!("what it denies cannot be said without what it allows: {why}"));
        }
        if !failed.is_empty() {
            return;
        }
        for (draft, action) in kept.into_iter().zip(actions) {
            if let Some(action) = action {
                self.allowed.push((action, self.rules.len()));
            }
            self.rules.push(draft);
        }
    }

    fn drafted(&self, frame: &Frame, effect: Effect, cases: Vec<Case>) -> Drafted {
        let mut draft = Drafted::new(&frame.name, effect, cases);
        draft.reason = (effect != Effect::Allow).then(|| frame.reason.clone());
        draft.mode = frame.mode;
        if effect == Effect::RequireApproval {
            draft.approvals = frame.approvals;
        }
        draft
    }

    /// An action with everything that narrows it, as cases; `None` where a part cannot be enforced.
    fn entry(&self, entry: &Field<'_>, effect: Effect) -> Option<(String, Vec<Case>)> {
        let action = entry.text_of("action")?;
        let tool = self.tool_target(&action);
        let mut targets = vec![(tool, None)];
        if let Some(kind) = kind(&action) {
            let target = vec![field("action.kind", Operator::Equals, json!(kind))];
            targets.push((target, Some("action.resource")));
        }
        let mut cases = Vec::new();
        for (base, resource) in targets {
            let mut parts = vec![vec![base]];
            for (key, given) in entry.members() {
                parts.extend(narrowed(&key, &given, effect, resource));
            }
            cases.extend(all_of(parts));
        }
        (!blocked(entry)).then_some((action, cases))
    }

    fn tool_target(&self, action: &str) -> Case {
        let names = match (action, self.names.get(action)) {
            ("*" | "tool_call" | "total", _) => vec!["*".to_owned()],
            (_, Some(names)) => names.clone(),
            (name, None) => vec![name.to_owned()],
        };
        vec![a_tool_call(), Atom::Tools(names)]
    }

    /// Texts that are looked for in everything that goes in.
    fn search(&mut self, entry: &Field<'_>, frame: &Frame) {
        let list = entry.get("patterns").into_iter().flat_map(|patterns| patterns.items());
        let mut patterns = Vec::new();
        for pattern in list {
            let Some(text) = pattern.text() else { continue };
            match wrong_pattern(&text) {
                Some(why) => pattern.refuse(why),
                None if frame.input => patterns.push(text),
                None => pattern.refuse(RESULTS),
            }
        }
        let mut tools = Vec::new();
        if let Some(action) = entry.text_of("action") {
            let names = self.tool_target(&action).into_iter();
            tools = names
                .filter_map(|atom| if let Atom::Tools(globs) = atom { Some(globs) } else { None })
                .flatten()
                .collect();
        }
        if !patterns.is_empty() {
            let (effect, reason, mode) = (frame.denial, frame.reason.clone(), frame.mode);
            self.searches.push(Search { effect, reason, patterns, tools, mode });
        }
    }

    /// Where only what is listed is allowed, asking about a text must not open the rest.
    fn guard_searches(&mut self) {
        if !self.allowlist {
            return;
        }
        let rules = self.allowed.iter().filter_map(|(_, number)| self.rules.get(*number));
        let atoms = rules.flat_map(|rule| rule.cases.iter().flatten());
        let mut named: Vec<String> = Vec::new();
        for atom in atoms {
            let Atom::Tools(globs) = atom else { continue };
            named.extend(
                globs.iter().filter(|glob| !named.contains(glob)).cloned().collect::<Vec<_>>(),
            );
        }
        self.searches.retain(|search| search.effect == Effect::Deny || !named.is_empty());
        for search in &mut self.searches {
            if search.effect == Effect::RequireApproval && search.tools.is_empty() {
                search.tools.clone_from(&named);
            }
        }
    }

    /// `{action, max_per_minute, …}`: how often what the file allows may happen.
    fn limit(&mut self, limit: &Field<'_>) {
        let Some(action) = limit.get("action") else { return };
        let Some(name) = action.text() else { return };
        if name == "tool_call" || name == "total" {
            self.total(limit.get("max_per_minute"));
            return;
        }
        let rules: Vec<usize> =
            self.allowed.iter().filter(|(of, _)| *of == name).map(|(_, rule)| *rule).collect();
        for (key, per) in [
            ("max_per_second", "second"),
            ("max_per_minute", "minute"),
            ("max_per_hour", "hour"),
            ("max_per_day", "day"),
        ] {
            let Some(most) = limit.get(key) else { continue };
            let Some(requests) = most.number() else { continue };
            if rules.is_empty() {
                most.refuse(format!(
                    "a limit belongs to what allows, and nothing in this file allows `{name}`"
                ));
            }
            let cases: usize = rules
                .iter()
                .filter_map(|rule| self.rules.get(*rule))
                .map(|rule| rule.cases.len())
                .sum();
            if cases > 1 {
                most.refuse(format!(
                    "here it would count by itself for each of the {cases} forms in which this file allows `{name}`"
                ));
                continue;
            }
            for rule in &rules {
                let Some(draft) = self.rules.get_mut(*rule) else { continue };
                draft.limits.extend(rate(requests, per));
            }
        }
    }

    /// So many calls of an agent a minute, whatever they are.
    fn total(&mut self, most: Option<Field<'_>>) {
        let Some(requests) = most.and_then(|most| most.number()) else { return };
        let case = vec![a_tool_call(), field("context.rate", Operator::GreaterThan, requests)];
        let mut draft = Drafted::new("rate-limit", Effect::Deny, vec![case]);
        draft.reason = Some("Too many actions in a minute.".into());
        self.rules.push(draft);
    }

    /// Hosts that HTTP requests may, and may not, go to.
    fn network(&mut self, network: &Field<'_>) {
        if let Some(default) = network.get("default_action") {
            default.must_be(&["deny"], "Aegis refuses what nothing allows");
        }
        let tool = self.tool_target("http_request");
        for (key, effect) in [("allowlist", Effect::Allow), ("blocklist", Effect::Deny)] {
            let Some(list) = network.get(key) else { continue };
            let mut cases = Vec::new();
            let kind = vec![field("action.kind", Operator::Equals, json!("http_request"))];
            for (base, resource) in [(tool.clone(), None), (kind, Some("action.resource"))] {
                let hosts = narrowed("domains", &list, effect, resource);
                cases.extend(all_of(vec![vec![base], hosts.unwrap_or_default()]));
            }
            if !blocked(&list) {
                let mut draft = Drafted::new(format!("network {key}"), effect, cases);
                draft.reason = (effect == Effect::Deny).then(|| "The host is blocked.".to_owned());
                if effect == Effect::Allow {
                    self.allowed.push(("http_request".into(), self.rules.len()));
                }
                self.rules.push(draft);
            }
        }
    }
}

/// Fields of an entry that say who approves and how long that may take narrow nothing.
const SAYS_WHO: [&str; 4] = ["approval_level", "timeout_minutes", "approvers", "message"];

/// Whether something was refused that narrows an entry.
fn blocked(entry: &Field<'_>) -> bool {
    let members = entry.members();
    if members.is_empty() {
        return entry.is_refused();
    }
    members.iter().any(|(key, field)| !SAYS_WHO.contains(&key.as_str()) && field.is_refused())
}

/// `dual` asks for two approvers; whoever else is named cannot be.
fn dual(entry: &Field<'_>) -> Option<u8> {
    let level = entry.get("approval_level")?;
    if level.text().as_deref() != Some("dual") {
        level.refuse(NO_APPROVERS);
        return None;
    }
    Some(2)
}

/// What a policy says of all its entries; `None` where nothing of it can be enforced.
fn frame(policy: &Field<'_>) -> Option<Frame> {
    let name = policy.text_of("name").unwrap_or_else(|| "policy".into());
    let mut denial = match policy.get("action").and_then(|action| Some((action.text()?, action))) {
        None => Effect::Deny,
        Some((signal, _)) if signal == "SIGKILL" => Effect::Deny,
        Some((signal, _)) if signal == "SIGSTOP" => Effect::RequireApproval,
        Some((_, action)) => {
            action.refuse("Aegis has refusal (SIGKILL) and waiting for approval (SIGSTOP)");
            Effect::Deny
        }
    };
    if let Some(asks) = policy.get("requires_approval").filter(|asks| !asks.is_list()) {
        asks.must_be(&["true", "false"], "true, false or a list was expected here");
        if asks.value().as_bool() == Some(true) {
            denial = Effect::RequireApproval;
        }
    }
    let mode = match policy.get("mode").and_then(|mode| Some((mode.text()?, mode))) {
        None => Mode::Enforce,
        Some((word, _)) if word == "enforce" => Mode::Enforce,
        Some((word, _)) if word == "warn" || word == "audit" => Mode::Audit,
        Some((_, mode)) => {
            mode.refuse("expected enforce, warn or audit");
            return None;
        }
    };
    let mut input = !policy.has("scope");
    for side in policy.list("scope") {
        match side.text().as_deref() {
            Some("input") => input = true,
            Some("output") => side.refuse(RESULTS),
            Some(_) => side.refuse("expected input or output"),
            None => {}
        }
    }
    let reason =
        policy.text_of("message").unwrap_or_else(|| format!("The policy {name} forbids it."));
    // What else narrows a policy as a whole cannot be left out of its entries.
    let known = [
        "name",
        "description",
        "severity",
        "category",
        "action",
        "message",
        "mode",
        "scope",
        "allow",
        "deny",
        "limits",
        "requires_approval",
        "approval_level",
        "timeout_minutes",
    ];
    let mut narrowed = false;
    for (key, field) in policy.members() {
        if !known.contains(&key.as_str()) {
            field.refuse(
                "nothing in Aegis enforces it, so the policy's own entries are left out with it",
            );
            narrowed = true;
        }
    }
    if narrowed {
        for key in ["allow", "deny", "requires_approval", "limits"] {
            policy.get(key).iter().filter(|field| field.is_list()).for_each(|field| {
                field.refuse("it belongs to what cannot be enforced");
            });
        }
        return None;
    }
    Some(Frame { name, denial, approvals: dual(policy), reason, mode, input })
}
