//! The formats that are lists of rules, of which the first that matches decides: Agent OS'
//! PolicyDocument, and AgentMesh's governance and trust policies. `proxy` reads those of its MCP proxy.

use aegis_core::policy::{Effect, Operator, RateLimit, RatePeriod, RateScope};
use serde_json::{Value, json};

use super::{
    cases::{Atom, Case, a_tool_call, all_of, field},
    emit::{Imported, wrong_pattern},
    expression::{self, Named, named},
    narrow::NO_APPROVERS,
    rules::{Drafted, in_order, is_catch_all, with_one_limit},
    template::Field,
};

const RECORDED: &str = "Aegis records every decision whatever a policy says; say `allow` or `deny`";

/// A rule with where it stands and how early it comes.
pub(super) struct Placed<'t> {
    pub(super) at: Field<'t>,
    pub(super) priority: i64,
    pub(super) draft: Drafted,
}

/// Orders rules and takes out of each what earlier ones decide. `last` come after all of them.
pub(super) fn ordered(
    mut rules: Vec<Placed<'_>>,
    last: Vec<Drafted>,
    higher_first: bool,
) -> Vec<Drafted> {
    rules.sort_by_key(|rule| if higher_first { -rule.priority } else { rule.priority });
    for (number, rule) in rules.iter_mut().enumerate() {
        rule.draft.origin = number;
    }
    let mut drafts: Vec<Drafted> = rules.iter().map(|rule| rule.draft.clone()).collect();
    drafts.extend(last);
    let (kept, failed) = in_order(drafts.clone());
    if let Some((number, _)) = failed.first()
        && drafts.get(*number).is_some_and(is_catch_all)
    {
        // What comes before it may be allowed, nothing after it is, and the rest is refused anyhow.
        drafts.truncate(*number);
        return limited_once(&rules, in_order(drafts).0);
    }
    for (number, why) in failed {
        if let Some(rule) = rules.get(number) {
            rule.at.refuse(format!(
                "in this order it cannot be said in Aegis, where deny overrides allow: {why}"
            ));
        }
    }
    limited_once(&rules, kept)
}

/// Rules of which each has one limit, however many cases it has.
fn limited_once(rules: &[Placed<'_>], kept: Vec<Drafted>) -> Vec<Drafted> {
    let mut out = Vec::new();
    for rule in &kept {
        if rule.limits.is_empty() || rule.cases.len() < 2 {
            out.push(rule.clone());
        } else if let Some((one, ban)) = with_one_limit(rule, &kept) {
            out.extend([one, ban]);
        } else if let Some(placed) = rules.get(rule.origin) {
            let limit = placed.at.get("rate_limit").or_else(|| placed.at.get("limit"));
            limit.as_ref().unwrap_or(&placed.at).refuse(
                "here it would count by itself for each form that a call of this rule can have, so the rule is left out with it",
            );
        }
    }
    out
}

fn priority(rule: &Field<'_>, default: i64) -> i64 {
    let Some(field) = rule.get("priority") else { return default };
    match field.value().as_i64() {
        Some(number) => {
            field.read();
            number
        }
        None => {
            field.refuse("a whole number was expected here");
            default
        }
    }
}

/// A JSON value out of YAML; refused where it is none.
fn plain(field: &Field<'_>) -> Option<Value> {
    let value = serde_json::to_value(field.value()).ok().filter(|value| !value.is_object());
    match &value {
        Some(_) => field.read(),
        None => field.refuse("a number, a text or a list was expected here"),
    }
    value
}

/// `{field, operator, value}`.
fn condition(rule: &Field<'_>) -> Option<Case> {
    let condition = rule.get("condition")?;
    let name = condition.get("field")?;
    let told = name.text()?;
    let operator = condition.get("operator")?;
    let word = operator.text()?;
    let value = plain(&condition.get("value")?)?;
    if told == "delegation_depth" {
        return Some(vec![depth(&operator, &word, &condition.get("value")?)?]);
    }
    let Some(known) = named(&told) else {
        name.refuse(format!("Aegis knows nothing by the name of `{told}` where it decides"));
        return None;
    };
    if matches!(known, Named::Field("principal.trust"))
        && value.as_f64().is_some_and(|v| v.fract() != 0.0)
    {
        condition.get("value")?.refuse("trust is a whole number from 0 to 1000");
        return None;
    }
    let operator = match word.as_str() {
        "eq" => Operator::Equals,
        "ne" => Operator::NotEquals,
        "gt" => Operator::GreaterThan,
        "gte" => Operator::AtLeast,
        "lt" => Operator::LessThan,
        "lte" => Operator::AtMost,
        "in" => Operator::In,
        "not_in" => Operator::NotIn,
        "contains" => Operator::Contains,
        "matches" => {
            if let Some(why) = value.as_str().and_then(wrong_pattern) {
                condition.get("value")?.refuse(why);
                return None;
            }
            Operator::Matches
        }
        _ => {
            operator
                .refuse("expected one of eq, ne, gt, gte, lt, lte, in, not_in, matches, contains");
            return None;
        }
    };
    Some(known.case(operator, value))
}

/// More links of delegation than so many.
fn depth(operator: &Field<'_>, word: &str, value: &Field<'_>) -> Option<Atom> {
    let links = value.value().as_u64();
    let most = match (word, links) {
        ("gt", Some(links)) => Some(links),
        ("gte", Some(links)) => links.checked_sub(1),
        _ => None,
    };
    let Some(most) = most else {
        operator.refuse(
            "of a delegation Aegis asks only whether it is longer than a number: gt or gte",
        );
        return None;
    };
    Some(field("principal.delegation", Operator::LongerThan, most))
}

/// A rule of which a part cannot be enforced is left out whole, and is named by that part.
pub(super) fn incomplete(rule: &Field<'_>) {
    if rule.is_refused() {
        rule.members().iter().filter(|(_, field)| !field.is_refused()).for_each(|(_, f)| f.read());
    } else {
        rule.refuse("it lacks what its format asks for: a name, a condition and an action");
    }
}

/// `{version, name, description, rules, defaults}` of Agent OS.
pub(crate) fn agent_os_document(root: &Field<'_>) -> Imported {
    let name = root.text_of("name").unwrap_or_else(|| "unnamed".into());
    root.describe(&["version", "description"]);
    let mut rules = Vec::new();
    for rule in root.list("rules") {
        rule.describe(&["name"]);
        let effect = rule.get("action").and_then(|action| match action.text()?.as_str() {
            "allow" => Some(Effect::Allow),
            // There, it is allowed and noted; here everything is noted.
            "audit" => Some(Effect::Allow),
            "deny" | "block" => Some(Effect::Deny),
            _ => {
                action.refuse("expected one of allow, deny, audit, block");
                None
            }
        });
        let (Some(effect), Some(case)) = (effect, condition(&rule)) else {
            incomplete(&rule);
            continue;
        };
        let mut draft = Drafted::new(
            rule.text_of("name").unwrap_or_default(),
            effect,
            all_of(vec![vec![vec![a_tool_call()]], vec![case]]),
        );
        draft.reason = rule.text_of("message");
        let priority = priority(&rule, 0);
        rules.push(Placed { at: rule, priority, draft });
    }
    let mut last = Vec::new();
    let default = root.get("defaults").and_then(|defaults| defaults.get("action"));
    let default = default.map(|action| (action.text().unwrap_or_default(), action));
    match default {
        // What says nothing allows, there.
        None => last.push(Drafted::new("default", Effect::Allow, vec![vec![a_tool_call()]])),
        Some((word, _)) if word == "allow" || word == "audit" => {
            last.push(Drafted::new("default", Effect::Allow, vec![vec![a_tool_call()]]));
        }
        Some((word, _)) if word == "deny" || word == "block" => {}
        Some((_, action)) => action.refuse("expected one of allow, deny, audit, block"),
    }
    root.note("It is about calls of tools; whatever else agents do stays refused.");
    Imported { name, rules: ordered(rules, last, true), ..Imported::default() }
}

/// `{version, name, agent, agents, default_action, rules}` of AgentMesh.
pub(crate) fn agentmesh_governance(root: &Field<'_>) -> Imported {
    let name = root.text_of("name").unwrap_or_default();
    root.describe(&["version", "description", "created_at", "updated_at"]);
    let mut agents = Vec::new();
    for agent in root.list("agent").into_iter().chain(root.list("agents")) {
        match agent.text().as_deref() {
            Some("*") => {}
            Some(did) if did.starts_with("did:") => agent.refuse(
                "a DID says nothing about who is at the other end; write the agent's name or SPIFFE ID",
            ),
            Some(name) => agents.push(name.to_owned()),
            None => {}
        }
    }
    let mut rules = Vec::new();
    for rule in root.list("rules") {
        rule.describe(&["name", "description"]);
        if let Some(enabled) = rule.get("enabled") {
            enabled.must_be(&["true", "false"], "true or false was expected here");
            if enabled.value().as_bool() == Some(false) {
                // What is switched off says nothing; so do its fields.
                rule.members().iter().for_each(|(_, field)| field.read());
                continue;
            }
        }
        let Some(draft) = governance_rule(&rule) else {
            incomplete(&rule);
            continue;
        };
        let priority = priority(&rule, 0);
        rules.push(Placed { at: rule, priority, draft });
    }
    let mut last = Vec::new();
    if let Some(default) = root.get("default_action") {
        default.must_be(&["allow", "deny"], "expected allow or deny");
        if default.value().as_str() == Some("allow") {
            last.push(Drafted::new("default", Effect::Allow, vec![vec![a_tool_call()]]));
        }
    }
    Imported { name, agents, rules: ordered(rules, last, true), ..Imported::default() }
}

fn governance_rule(rule: &Field<'_>) -> Option<Drafted> {
    let action = rule.get("action");
    let effect = match action.as_ref().and_then(Field::text).as_deref() {
        None | Some("deny") => Effect::Deny,
        Some("allow") => Effect::Allow,
        Some("require_approval") => Effect::RequireApproval,
        Some("warn" | "log") => {
            // Its engine refuses what it documents as allowed.
            action?.refuse(RECORDED);
            return None;
        }
        Some(_) => {
            action?.refuse("expected one of allow, deny, warn, require_approval, log");
            return None;
        }
    };
    let condition = rule.get("condition")?;
    let cases = match expression::parse(&condition.text()?) {
        Ok(cases) => cases,
        Err(why) => {
            condition.refuse(why);
            return None;
        }
    };
    let cases = all_of(vec![vec![vec![a_tool_call()]], cases]);
    let mut draft = Drafted::new(rule.text_of("name").unwrap_or_default(), effect, cases);
    draft.reason = rule.text_of("description");
    if let Some(approver) = rule.get("approvers") {
        approver.refuse(NO_APPROVERS);
    }
    if let Some(limit) = rule.get("limit") {
        match limit.text().as_deref().and_then(slashed) {
            Some(rate) if effect == Effect::Allow => draft.limits.push(rate),
            Some(_) => {
                limit.refuse("a limit says how often a rule allows, and this one does not allow")
            }
            None => limit.refuse("expected a number and a period, such as 100/hour"),
        }
    }
    (!rule.get("limit").is_some_and(|limit| limit.is_refused())).then_some(draft)
}

/// `100/hour`.
fn slashed(text: &str) -> Option<RateLimit> {
    let (requests, per) = text.split_once('/')?;
    rate(requests.trim().parse().ok().filter(|requests| *requests > 0)?, per.trim())
}

pub(crate) fn rate(requests: u32, per: &str) -> Option<RateLimit> {
    let per = match per {
        "second" => RatePeriod::Second,
        "minute" => RatePeriod::Minute,
        "hour" => RatePeriod::Hour,
        "day" => RatePeriod::Day,
        _ => return None,
    };
    Some(RateLimit { requests, per, burst: None, scope: RateScope::Agent })
}

/// `{name, version, rules, defaults}` of AgentMesh, about trust.
pub(crate) fn agentmesh_trust(root: &Field<'_>) -> Imported {
    let name = root.text_of("name").unwrap_or_default();
    root.describe(&["version", "description"]);
    let mut rules = Vec::new();
    for rule in root.list("rules") {
        rule.describe(&["name", "description"]);
        let action = rule.get("action");
        let effect = match action.as_ref().and_then(Field::text).as_deref() {
            None | Some("deny") => Some(Effect::Deny),
            Some("allow") => Some(Effect::Allow),
            Some("require_approval") => Some(Effect::RequireApproval),
            Some("warn") => {
                action.iter().for_each(|action| action.refuse(RECORDED));
                None
            }
            Some(_) => {
                let why = "expected one of allow, deny, warn, require_approval";
                action.iter().for_each(|action| action.refuse(why));
                None
            }
        };
        let (Some(effect), Some(case)) = (effect, condition(&rule)) else {
            incomplete(&rule);
            continue;
        };
        let draft = trusting(rule.text_of("name").unwrap_or_default(), effect, case);
        let draft = Drafted { reason: rule.text_of("description"), ..draft };
        let priority = priority(&rule, 100);
        rules.push(Placed { at: rule, priority, draft });
    }
    let last = trust_defaults(root);
    root.note("It says whom to deal with, so what it allows are messages between agents; what it refuses is refused for everything.");
    Imported { name, rules: ordered(rules, last, false), ..Imported::default() }
}

/// Trust allows dealing with an agent, not everything that the agent does.
fn trusting(name: impl Into<String>, effect: Effect, case: Case) -> Drafted {
    let message = field("action.kind", Operator::Equals, json!("agent_message"));
    let case = match effect {
        Effect::Deny => case,
        Effect::Allow | Effect::RequireApproval => [vec![message], case].concat(),
    };
    Drafted::new(name, effect, vec![case])
}

/// What is asked of whom no rule is about; absent ones have AgentMesh's own values.
fn trust_defaults(root: &Field<'_>) -> Vec<Drafted> {
    let defaults = root.get("defaults");
    let number = |key: &str, unless: u32| match defaults.as_ref().and_then(|d| d.get(key)) {
        Some(field) if field.value().as_u64() == Some(0) => {
            field.read();
            Some(0)
        }
        Some(field) => field.number(),
        None => Some(unless),
    };
    let mut last = Vec::new();
    if let Some(least) = number("min_trust_score", 500) {
        let case = vec![field("principal.trust", Operator::LessThan, least)];
        last.push(trusting("min-trust-score", Effect::Deny, case));
    }
    if let Some(most) = number("max_delegation_depth", 3) {
        let case = vec![field("principal.delegation", Operator::LongerThan, most)];
        last.push(trusting("max-delegation-depth", Effect::Deny, case));
    }
    if let Some(defaults) = &defaults {
        let allowed = defaults.texts_of("allowed_namespaces");
        if !allowed.is_empty() && !allowed.iter().any(|namespace| namespace == "*") {
            let case = vec![field("principal.namespace", Operator::NotIn, json!(allowed))];
            last.push(trusting("allowed-namespaces", Effect::Deny, case));
        }
        if let Some(handshake) = defaults.get("require_handshake") {
            handshake.must_be(
                &["true"],
                "Aegis knows every caller by attestation or by its SVID; there is no way without",
            );
        }
    }
    last.push(trusting("default", Effect::Allow, Vec::new()));
    last
}
