//! Entries of the ledger as OpenTelemetry log records: what happened, where it stands, and in which trace.
//!
//! A record is a pointer and a summary. Arguments, resources and details stay in the ledger, where their
//! redaction is proven; whoever may read it finds them by the index and the leaf hash.

use std::time::{Duration, SystemTime};

use aegis_audit::{
    entry::{Draft, Kind, Outcome},
    journal::{Observed, Observer},
};
use aegis_runtime::telemetry::{Logger, remote_context};
use opentelemetry::logs::{LogRecord as _, Logger as _, Severity};

/// Tells a collector of each entry once it is committed. On the journal's own thread: it fills a bounded
/// queue, and what finds that full is not told.
#[must_use]
pub fn records(logger: Logger) -> Observer {
    Box::new(move |observed| tell(&logger, observed))
}

fn tell(logger: &Logger, observed: &Observed<'_>) {
    let draft = observed.draft;
    let mut record = logger.create_log_record();
    record.set_event_name("aegis.audit.entry");
    record
        .set_timestamp(SystemTime::UNIX_EPOCH + Duration::from_micros(draft.timestamp.as_micros()));
    let (severity, name) = severity(draft);
    record.set_severity_number(severity);
    record.set_severity_text(name);
    record.set_body(sentence(draft).into());
    record.add_attribute("aegis.kind", draft.kind.as_str());
    record.add_attribute("aegis.result", draft.result.as_str());
    for (name, number) in [
        ("aegis.log.index", Some(observed.index)),
        ("aegis.risk", draft.risk),
        ("aegis.trust", draft.trust),
    ] {
        if let Some(number) = number.and_then(|number| i64::try_from(number).ok()) {
            record.add_attribute(name, number);
        }
    }
    record.add_attribute("aegis.log.leaf_hash", observed.leaf.to_string());
    record.add_attribute("aegis.log.source", observed.source.to_owned());
    for (name, text) in [
        ("aegis.agent.id", draft.agent_id.as_deref()),
        ("aegis.reason", draft.reason.as_deref()),
        ("aegis.tier", draft.tier.as_deref()),
        ("aegis.approval.id", draft.approval.as_deref()),
        ("aegis.decision_id", draft.decision_id.as_deref()),
        ("aegis.server", draft.action_text("server")),
        ("aegis.method", draft.action_text("method")),
        ("gen_ai.tool.name", draft.action_text("tool")),
    ] {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            record.add_attribute(name, text.to_owned());
        }
    }
    if let Some(context) = draft.trace.as_deref().and_then(|told| remote_context(told, None)) {
        record.set_trace_context(
            context.trace_id(),
            context.span_id(),
            Some(context.trace_flags()),
        );
    }
    logger.emit(record);
}

const fn severity(draft: &Draft) -> (Severity, &'static str) {
    match (draft.kind, draft.result) {
        (Kind::Gap, _) => (Severity::Error, "ERROR"),
        (Kind::PolicyRefused | Kind::ToolQuarantined | Kind::IdentityRevoked, _)
        | (_, Outcome::Deny | Outcome::Failure) => (Severity::Warn, "WARN"),
        _ => (Severity::Info, "INFO"),
    }
}

/// For people.
fn sentence(draft: &Draft) -> String {
    let words =
        ["method", "tool", "server"].map(|name| draft.action_text(name).unwrap_or_default());
    let about: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let (kind, result) = (draft.kind, draft.result);
    match (about.is_empty(), draft.reason.as_deref()) {
        (true, None) => format!("{kind}: {result}"),
        (true, Some(reason)) => format!("{kind}: {result}, {reason}"),
        (false, None) => format!("{kind} {}: {result}", about.join(" ")),
        (false, Some(reason)) => format!("{kind} {}: {result}, {reason}", about.join(" ")),
    }
}
