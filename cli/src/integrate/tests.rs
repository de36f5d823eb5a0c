//! What `aegis integrate` writes into an agent's files, leaves in them, and takes out again.

use serde_json::json;

use super::*;

const COMMAND: &str =
    "/opt/aegis-hook --agent claude-code --kernel-socket /s/kernel.sock || exit 2";

fn put(agent: Agent, text: &str) -> anyhow::Result<String> {
    let entries = hooks::entries(agent, COMMAND, 0, false)?;
    Ok(String::from_utf8(with(Path::new("x.json"), agent, text.into(), &entries)?)?)
}

fn taken_out(agent: Agent, text: &str) -> String {
    String::from_utf8(without(Path::new("x.json"), agent, text.into()).unwrap()).unwrap()
}

#[test]
fn what_others_wrote_stays_byte_by_byte() {
    let files = [
        "{\n    \"model\":   \"x\",\n    \"hooks\": {\n        \"PreToolUse\": [\n            {\"matcher\": \"Bash\", \"hooks\": [{\"type\": \"command\", \"command\": \"lint\"}]}\n        ]\n    },\n    \"n\": 1.50\n}\n",
        "{\"a\":1,\"hooks\":{\"Stop\":[{\"hooks\":[]}]}}",
        "{\n\t\"permissions\": {\"allow\": [\"Bash(ls)\"]}\n}",
    ];
    for before in files {
        let after = put(Agent::ClaudeCode, before).unwrap();
        assert_ne!(after, before);
        assert!(after.contains("aegis-hook"), "{after}");
        // Taking the entry out gives the very bytes.
        assert_eq!(taken_out(Agent::ClaudeCode, &after), before, "{after}");
        // Again changes nothing.
        assert_eq!(put(Agent::ClaudeCode, &after).unwrap(), after);
    }
}

#[test]
fn every_agent_gets_its_form() {
    for agent in Agent::ALL {
        let after = put(agent, "{}\n").unwrap();
        let value: Value = serde_json::from_str(&after).unwrap();
        assert!(hooks::lists(agent).iter().any(|list| {
            value
                .pointer(&format!("/{}", list.join("/")))
                .is_some_and(|items| items.as_array().unwrap().len() == 1)
        }));
        assert_eq!(put(agent, &after).unwrap(), after, "{agent:?}");
        let left: Value = serde_json::from_str(&taken_out(agent, &after)).unwrap();
        assert_eq!(left, hooks::base(agent), "{agent:?}");
    }
    assert!(put(Agent::Cursor, "{}").unwrap().contains("\"failClosed\": true"));
    assert!(put(Agent::Gemini, "{}").unwrap().contains("\"timeout\": 30000"));
    assert!(hooks::entries(Agent::Copilot, COMMAND, 0, true).is_err());
}

#[test]
fn an_older_entry_is_replaced_and_a_neighbour_kept() {
    let before = r#"{"hooks":{"PreToolUse":[{"matcher":"*","hooks":[{"command":"/old/aegis hook --agent claude-code"},{"command":"mine"}]},{"hooks":[{"command":"'/o ld/aegis-hook' --agent x"}]}]}}"#;
    let after: Value = serde_json::from_str(&put(Agent::ClaudeCode, before).unwrap()).unwrap();
    let items = after["hooks"]["PreToolUse"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(items[0]["hooks"], json!([{ "command": "mine" }]));
    assert_eq!(items[1]["hooks"][0]["command"], COMMAND);
    for other in ["echo aegis hooks", "/bin/not-aegis-hook x", "aegis-hooks"] {
        assert!(!hooks::is_ours(&json!({ "command": other })), "{other}");
    }
}

#[test]
fn what_is_not_understood_is_not_touched() {
    for text in [
        "{ // mine\n}",
        "{\"a\":1,}",
        "[]",
        "",
        "{\"a\":1,\"a\":2}",
        "{\"hooks\":[]}",
        "{\"hooks\":{\"PreToolUse\":{}}}",
    ] {
        let error = put(Agent::ClaudeCode, text).unwrap_err().to_string();
        assert!(
            error.contains("x.json") && error.contains("nothing was written"),
            "{text}: {error}"
        );
    }
}

#[test]
fn hooks_that_are_switched_off_are_noticed() {
    assert!(hooks::switched_off(Agent::ClaudeCode, &json!({ "disableAllHooks": true })).is_some());
    assert!(hooks::switched_off(Agent::ClaudeCode, &json!({ "disableAllHooks": false })).is_none());
    assert!(
        hooks::switched_off(Agent::Gemini, &json!({ "hooksConfig": { "enabled": false } }))
            .is_some()
    );
    assert!(
        hooks::switched_off(Agent::Gemini, &json!({ "hooksConfig": { "disabled": ["aegis"] } }))
            .is_some()
    );
}

#[test]
fn servers_are_wrapped_and_unwrapped() {
    let wrapper =
        servers::Wrapper { program: "/opt/aegis".into(), socket: "/s/control.sock".into() };
    let before = "{\n  \"mcpServers\": {\n    \"a\": {\"command\": \"npx\", \"args\": [\"-y\",\"x\"], \"env\": {\"K\": \"v\"}},\n    \"b\": {\"url\": \"https://x.example\"}\n  }\n}\n";
    let after = servers::in_json(before.as_bytes(), "mcpServers", Some(&wrapper)).unwrap();
    let value: Value = serde_json::from_slice(&after).unwrap();
    assert_eq!(value["mcpServers"]["a"]["command"], "/opt/aegis");
    assert_eq!(
        value["mcpServers"]["a"]["args"],
        json!(["wrap", "--socket", "/s/control.sock", "--server", "a", "--", "npx", "-y", "x"])
    );
    assert_eq!(servers::in_json(&after, "mcpServers", Some(&wrapper)).unwrap(), after);
    let back = servers::in_json(&after, "mcpServers", None).unwrap();
    assert_eq!(String::from_utf8(back).unwrap(), before);

    let before = "# mine\nmodel = \"x\"\n\n[mcp_servers.a] # first\ncommand = \"npx\"\nargs = [\"-y\", \"x\"]\n";
    let after = servers::in_toml(before, "mcp_servers", Some(&wrapper)).unwrap();
    assert!(
        after.contains("# mine")
            && after.contains("# first")
            && after.contains("\"--server\", \"a\""),
        "{after}"
    );
    assert_eq!(servers::in_toml(&after, "mcp_servers", Some(&wrapper)).unwrap(), after);
    assert_eq!(servers::in_toml(&after, "mcp_servers", None).unwrap(), before);
    assert!(servers::in_toml("a = ", "mcp_servers", None).is_err());
}

#[test]
fn a_word_is_one_word_to_a_shell() {
    assert_eq!(quoted("/opt/a"), "/opt/a");
    assert_eq!(quoted("/o pt/it's"), r"'/o pt/it'\''s'");
}

#[test]
fn a_link_where_the_copy_goes_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, own) = (folder.path().join("settings.json"), folder.path().join("profile"));
    fs::write(&settings, "{\"x\": \"$(touch y)\"}").unwrap();
    fs::write(&own, "mine").unwrap();
    std::os::unix::fs::symlink(&own, folder.path().join("settings.json.before-aegis")).unwrap();
    let backup = keep(&settings, &fs::read(&settings).unwrap()).unwrap();
    assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
    assert!(!fs::symlink_metadata(&backup).unwrap().is_symlink());
    assert_eq!(fs::read(&backup).unwrap(), fs::read(&settings).unwrap());
}
