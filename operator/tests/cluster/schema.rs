//! What the API server takes, and what it says to what it does not take.

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::fixture::{apply, cluster, namespace};

#[tokio::test]
async fn resources_are_accepted_and_refused_as_written_down() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let text = include_str!("resources.yaml");
    let expectations = text.lines().filter_map(|line| {
        line.strip_prefix("# refused: ")
            .map(Some)
            .or_else(|| (line == "# accepted").then_some(None))
    });
    let objects = serde_yaml_ng::Deserializer::from_str(text)
        .map(|one| Value::deserialize(one).unwrap())
        .filter(Value::is_object);
    let mut wrong = Vec::new();
    let mut count = 0;
    for (object, expected) in objects.zip(expectations) {
        count += 1;
        let result = apply(&client, &namespace, &object).await.map_err(|error| error.to_string());
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(message), Some(part)) if message.contains(part) => {}
            (result, expected) => wrong
                .push(format!("{object}\n  expected {expected:?}\n  got {:?}", result.map(drop))),
        }
    }
    assert_eq!(count, text.matches("\nkind: ").count());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the API server takes, the folder reader takes too: one YAML for both.
#[test]
fn a_folder_reads_what_the_cluster_accepts() {
    let text = include_str!("resources.yaml");
    for part in text.split("---\n").filter(|part| part.starts_with("# accepted")) {
        let parsed = aegis_resources::parse_documents("resources.yaml", part);
        let kind = part.lines().find(|line| line.starts_with("kind: ")).unwrap();
        // A view of what the ledger holds is nothing to configure.
        let view = kind == "kind: ApprovalRequest";
        assert_eq!(parsed[0].is_err(), view, "{part}\n{:?}", parsed[0]);
    }
}

#[tokio::test]
async fn what_is_asked_for_cannot_be_changed() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let text = include_str!("resources.yaml");
    let request: Value = text
        .split("---\n")
        .find(|part| part.starts_with("# accepted") && part.contains("kind: ApprovalRequest"))
        .map(|part| serde_yaml_ng::from_str(part).unwrap())
        .unwrap();
    apply(&client, &namespace, &request).await.unwrap();
    let refused = async |spec: Value| {
        let changed = json!({ "apiVersion": request["apiVersion"], "kind": request["kind"], "metadata": request["metadata"], "spec": spec });
        apply(&client, &namespace, &changed).await.err().map(|error| error.to_string())
    };
    for (member, value) in request["spec"].as_object().unwrap() {
        let mut spec = request["spec"].clone();
        spec[member] = match value {
            Value::Number(_) => 9.into(),
            _ => Value::String(match member.as_str() {
                "action" => "sha256:".to_owned() + &"0".repeat(64),
                "enforcedBy" | "requester" => "spiffe://acme.example/ns/a/sa/b/agent/c".into(),
                "expiresAt" => "2098-01-01T00:00:00Z".into(),
                "sponsor" => "grace@acme.example".into(),
                _ => "another".into(),
            }),
        };
        let refused = refused(spec).await.unwrap_or_default();
        assert!(refused.contains("the agent has to ask again"), "{member}: {refused}");
    }
    let mut spec = request["spec"].clone();
    spec.as_object_mut().unwrap().remove("tool");
    assert!(refused(spec).await.unwrap_or_default().contains("the agent has to ask again"));
    // The answer is what may be written; whose it is, and whether, is for admission to say.
    let mut spec = request["spec"].clone();
    spec["answer"] = "approve".into();
    assert_eq!(refused(spec).await, None);
}
