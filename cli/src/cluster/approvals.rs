//! `aegis approvals --cluster`: ApprovalRequests, answered as oneself.
//!
//! Who answers is whom the API server has authenticated; nothing here says so.

use anyhow::{Context as _, bail};
use http::Request;
use serde_json::{Value, json};

use super::{Cluster, KINDS, full_name, text};
use crate::{
    Outcome,
    log::encode,
    output::{self, Format, Text, Tone},
};

/// Lists what waits, and unless only that is wanted, what has been answered.
///
/// # Errors
/// When the cluster does not tell.
pub(crate) async fn list(
    cluster: &Cluster,
    pending: bool,
    format: Format,
) -> anyhow::Result<Outcome> {
    let mut all = cluster.list(&format!("{KINDS}/approvalrequests"), "").await?;
    all.retain(|one| !pending || waits(one));
    all.sort_by_key(|one| (!waits(one), text(one, "/metadata/creationTimestamp").to_owned()));
    if format == Format::Json {
        output::json(&all.iter().map(view).collect::<Vec<_>>())?;
        return Ok(Outcome::Done);
    }
    let mut shown = Text::new();
    if all.is_empty() {
        shown.line("nothing waits for approval");
    } else {
        let rows = all.iter().map(|one| {
            let action = match text(one, "/spec/tool") {
                "" => text(one, "/spec/method"),
                tool => tool,
            };
            let told = ["/spec/requester", "/spec/expiresAt", "/spec/reason"];
            let [agent, expires, why] = told.map(|pointer| text(one, pointer).to_owned());
            let action = format!("{} {action}", text(one, "/spec/server"));
            vec![full_name(one), state(one).to_owned(), agent, action, expires, why]
        });
        shown.table(&["ID", "STATE", "AGENT", "ACTION", "EXPIRES", "WHY"], rows.collect());
    }
    shown.print()?;
    Ok(Outcome::Done)
}

/// Shows one.
///
/// # Errors
/// When there is none of this name, or the cluster does not tell.
pub(crate) async fn show(cluster: &Cluster, id: &str, format: Format) -> anyhow::Result<Outcome> {
    print(&find(cluster, id).await?, format)
}

/// Answers one, as whoever the kubeconfig says.
///
/// # Errors
/// When the cluster refuses the answer.
pub(crate) async fn answer(
    cluster: &Cluster,
    id: &str,
    approve: bool,
    format: Format,
) -> anyhow::Result<Outcome> {
    let found = find(cluster, id).await?;
    if !waits(&found) {
        bail!("approval {} is already {}", full_name(&found), state(&found).to_lowercase());
    }
    let word = if approve { "approve" } else { "deny" };
    let name = text(&found, "/metadata/name");
    let patch = json!({
        // Another object of the same name is another question.
        "metadata": { "uid": text(&found, "/metadata/uid") },
        "spec": { "answer": word },
    });
    let uri = format!(
        "{KINDS}/namespaces/{}/approvalrequests/{name}",
        text(&found, "/metadata/namespace")
    );
    let request = Request::patch(uri)
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(&patch)?)?;
    let answered: Value = cluster.client.request(request).await.with_context(|| {
        format!("the cluster does not take your answer to {}", full_name(&found))
    })?;
    print(&answered, format)
}

/// The one of this name: `namespace/id`, or the id alone where one may look everywhere.
async fn find(cluster: &Cluster, id: &str) -> anyhow::Result<Value> {
    let (path, name) = match id.split_once('/') {
        Some((namespace, name)) => {
            (format!("{KINDS}/namespaces/{}/approvalrequests", encode(namespace)), name)
        }
        None => (format!("{KINDS}/approvalrequests"), id),
    };
    let selector = format!("&fieldSelector=metadata.name%3D{}", encode(name));
    let mut found = cluster.list(&path, &selector).await?;
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (Some(_), _) => bail!("several namespaces have an approval `{id}`; write namespace/{id}"),
        (None, _) => bail!(
            "there is no approval `{id}`; list the open ones with `aegis approvals list --cluster`"
        ),
    }
}

fn state(one: &Value) -> &str {
    match text(one, "/status/state") {
        "" => "Pending",
        state => state,
    }
}

fn waits(one: &Value) -> bool {
    state(one) == "Pending"
}

/// What is asked and how it stands, without what only the API server cares for.
fn view(one: &Value) -> Value {
    json!({
        "id": full_name(one),
        "state": state(one),
        "asked": one.get("spec"),
    })
}

fn print(one: &Value, format: Format) -> anyhow::Result<Outcome> {
    if format == Format::Json {
        output::json(&view(one))?;
        return Ok(Outcome::Done);
    }
    let mut shown = Text::new();
    shown.field("approval", full_name(one));
    shown.toned(Tone::of(&state(one).to_lowercase()), format!("{:<14} {}", "state", state(one)));
    for (name, pointer) in [
        ("agent", "/spec/requester"),
        ("sponsor", "/spec/sponsor"),
        ("enforced by", "/spec/enforcedBy"),
        ("server", "/spec/server"),
        ("method", "/spec/method"),
        ("tool", "/spec/tool"),
        ("digest", "/spec/action"),
        ("why", "/spec/reason"),
        ("tier", "/spec/tier"),
        ("expires", "/spec/expiresAt"),
    ] {
        let told = text(one, pointer);
        if !told.is_empty() {
            shown.field(name, told);
        }
    }
    let answers = one.pointer("/spec/answers").and_then(Value::as_array);
    for answer in answers.into_iter().flatten() {
        shown.line(format!("{}: {}", text(answer, "/by"), text(answer, "/verdict")));
    }
    shown.print()?;
    Ok(Outcome::Done)
}
