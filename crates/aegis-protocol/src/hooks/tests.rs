//! Payloads of every agent, read as the actions that they are, and what is no payload.

use aegis_core::action::{ActionKind, Protocol};
use serde_json::{Value, json};

use super::*;

fn hook(agent: Agent, payload: &Value) -> Result<Hook, HookError> {
    read(agent, payload.to_string().as_bytes(), Limits::default())
}

/// The one action, as its kind and what names it.
fn judged(agent: Agent, payload: &Value) -> (ActionKind, String, Value) {
    let hook = hook(agent, payload).unwrap_or_else(|error| panic!("{error}: {payload}"));
    assert_eq!((hook.event, hook.actions.len()), (Event::Tool, 1));
    let action = hook.actions.into_iter().next().unwrap();
    assert_eq!(action.protocol, Protocol::Ide);
    let named = action.resource.or_else(|| Some(format!("{}/{}", action.server, action.tool?)));
    (action.kind, named.unwrap_or_default(), action.arguments)
}

fn claude(tool: &str, input: &Value) -> Value {
    json!({
        "session_id": "s", "transcript_path": "/t", "cwd": "/work", "permission_mode": "default",
        "prompt_id": "p", "effort": { "level": "high" },
        "hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": input, "tool_use_id": "u",
    })
}

fn codex(tool: &str, input: &Value) -> Value {
    json!({
        "session_id": "s", "turn_id": "t", "transcript_path": null, "cwd": "/work", "model": "m",
        "permission_mode": "default", "hook_event_name": "PreToolUse", "tool_name": tool,
        "tool_input": input, "tool_use_id": "c",
    })
}

fn gemini(tool: &str, input: &Value) -> Value {
    json!({
        "session_id": "s", "transcript_path": "/t", "cwd": "/work", "hook_event_name": "BeforeTool",
        "timestamp": "2026-11-23T10:00:00.000Z", "tool_name": tool, "tool_input": input,
    })
}

fn copilot(tool: &str, input: &Value) -> Value {
    json!({ "sessionId": "s", "timestamp": 1_795_454_093_736_u64, "cwd": "/work", "toolName": tool, "toolArgs": input })
}

fn cursor(event: &str, more: &Value) -> Value {
    let mut whole = json!({
        "conversation_id": "c", "generation_id": "g", "model": "m", "hook_event_name": event,
        "cursor_version": "2.4.0", "workspace_roots": ["/work"], "user_email": "ada@acme.example",
        "transcript_path": null, "cwd": "/work",
    });
    whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    whole
}

fn vscode(tool: &str, input: &Value) -> Value {
    json!({
        "timestamp": "2026-02-09T10:30:00.000Z", "cwd": "/work", "sessionId": "s",
        "hookEventName": "PreToolUse", "transcript_path": "/t", "tool_name": tool,
        "tool_input": input, "tool_use_id": "tool-123",
    })
}

#[test]
fn a_command_is_a_command_at_every_agent() {
    let input = json!({ "command": "ls", "description": "look" });
    let plain = json!({ "command": "ls" });
    let cases = [
        (Agent::ClaudeCode, claude("Bash", &input), &input),
        (Agent::Codex, codex("Bash", &plain), &plain),
        (Agent::Gemini, gemini("run_shell_command", &input), &input),
        (Agent::Copilot, copilot("bash", &input), &input),
        (Agent::Copilot, copilot("bash", &json!(input.to_string())), &input),
        (
            Agent::Cursor,
            cursor("preToolUse", &json!({ "tool_name": "Shell", "tool_input": input })),
            &input,
        ),
        (Agent::Cursor, cursor("beforeShellExecution", &json!({ "command": "ls" })), &plain),
        (Agent::Vscode, vscode("run_in_terminal", &input), &input),
        // VS Code runs hooks that are registered for others.
        (Agent::ClaudeCode, vscode("run_in_terminal", &input), &input),
        (Agent::Copilot, vscode("run_in_terminal", &input), &input),
    ];
    for (agent, payload, arguments) in cases {
        assert_eq!(
            judged(agent, &payload),
            (ActionKind::ShellExec, String::new(), arguments.clone()),
            "{agent:?}"
        );
    }
}

use ActionKind::{FileRead, FileWrite};

type File = (Agent, Value, ActionKind, &'static str);

fn files_of_command_lines() -> Vec<File> {
    vec![
        (
            Agent::ClaudeCode,
            claude("Write", &json!({ "file_path": "/work/a/../.env", "content": "x" })),
            FileWrite,
            "/work/.env",
        ),
        (
            Agent::ClaudeCode,
            claude("Edit", &json!({ "file_path": "./b//c", "old_string": "a", "new_string": "b" })),
            FileWrite,
            "/work/b/c",
        ),
        (
            Agent::ClaudeCode,
            claude("NotebookEdit", &json!({ "notebook_path": "/n.ipynb", "new_source": "x" })),
            FileWrite,
            "/n.ipynb",
        ),
        (
            Agent::ClaudeCode,
            claude("Read", &json!({ "file_path": "/../../etc/passwd" })),
            FileRead,
            "/etc/passwd",
        ),
        (
            Agent::Gemini,
            gemini("write_file", &json!({ "file_path": "a", "content": "x" })),
            FileWrite,
            "/work/a",
        ),
        (
            Agent::Gemini,
            gemini("replace", &json!({ "file_path": "/a", "old_string": "a", "new_string": "b" })),
            FileWrite,
            "/a",
        ),
        (Agent::Gemini, gemini("read_file", &json!({ "absolute_path": "/a" })), FileRead, "/a"),
        (
            Agent::Copilot,
            copilot("create", &json!({ "path": "a", "file_text": "x" })),
            FileWrite,
            "/work/a",
        ),
        (Agent::Copilot, copilot("view", &json!({ "path": "/a" })), FileRead, "/a"),
    ]
}

fn files_of_editors() -> Vec<File> {
    vec![
        (
            Agent::Cursor,
            cursor(
                "preToolUse",
                &json!({ "tool_name": "Write", "tool_input": { "file_path": "/a", "content": "x" } }),
            ),
            FileWrite,
            "/a",
        ),
        (
            Agent::Cursor,
            cursor("preToolUse", &json!({ "tool_name": "Delete", "tool_input": { "path": "a" } })),
            FileWrite,
            "/work/a",
        ),
        (
            Agent::Cursor,
            cursor(
                "beforeReadFile",
                &json!({ "file_path": "/a", "content": "x", "attachments": [] }),
            ),
            FileRead,
            "/a",
        ),
        (
            Agent::Vscode,
            vscode("create_file", &json!({ "filePath": "/a", "content": "x" })),
            FileWrite,
            "/a",
        ),
        (
            Agent::Vscode,
            vscode("editFiles", &json!({ "files": ["src/main.ts"] })),
            FileWrite,
            "/work/src/main.ts",
        ),
        (Agent::Vscode, vscode("read_file", &json!({ "filePath": "/a" })), FileRead, "/a"),
    ]
}

#[test]
fn a_file_is_named_by_its_absolute_path() {
    for (agent, payload, kind, path) in [files_of_command_lines(), files_of_editors()].concat() {
        let (judged_as, named, arguments) = judged(agent, &payload);
        assert_eq!((judged_as, named.as_str()), (kind, path), "{payload}");
        if payload.to_string().contains("content") && !payload.to_string().contains("attachments") {
            assert_eq!(arguments["content"], "x", "{payload}");
        }
    }
}

#[test]
fn a_tool_of_a_server_has_the_names_of_the_proxy() {
    let input = json!({ "query": "SELECT 1" });
    let mut by_gemini = gemini("mcp_shop_db_read_query", &input);
    by_gemini["mcp_context"] =
        json!({ "server_name": "shop_db", "tool_name": "read_query", "command": "x" });
    for (agent, payload) in [
        (Agent::ClaudeCode, claude("mcp__shop_db__read_query", &input)),
        (Agent::Codex, codex("mcp__shop_db__read_query", &input)),
        (Agent::Gemini, by_gemini),
    ] {
        let actions = hook(agent, &payload).unwrap().actions;
        assert_eq!(actions[0].method, "tools/call");
        assert_eq!(
            (actions[0].server.as_str(), actions[0].tool.as_deref()),
            ("shop_db", Some("read_query"))
        );
        assert_eq!(actions[0].arguments, input);
    }
    let mut told_apart = claude("mcp__a_b__c__d", &input);
    told_apart["mcp_server"] = json!({ "name": "a.b", "source": "user" });
    assert_eq!(judged(Agent::ClaudeCode, &told_apart).1, "a.b/c__d");
    told_apart["mcp_server"]["name"] = "other".into();
    assert_eq!(hook(Agent::ClaudeCode, &told_apart), Err(HookError::Ambiguous));
    // A name that two servers could have is nobody's.
    for name in ["mcp__a__b__c", "mcp__a___b"] {
        assert_eq!(
            hook(Agent::ClaudeCode, &claude(name, &input)),
            Err(HookError::Ambiguous),
            "{name}"
        );
    }
    let by_cursor = cursor(
        "beforeMCPExecution",
        &json!({ "tool_name": "read_query", "tool_input": input.to_string(), "command": "x" }),
    );
    assert_eq!(
        judged(Agent::Cursor, &by_cursor),
        (ActionKind::ToolCall, "cursor/MCP:read_query".into(), input.clone())
    );
    assert_eq!(
        judged(Agent::Vscode, &vscode("mcp_shop_read_query", &input)).1,
        "vscode/mcp_shop_read_query"
    );
}

#[test]
fn no_servers_tool_passes_for_the_agents_own() {
    let input = json!({ "path": "/a" });
    // Cursor tells that a tool is a server's by its prefix, or by the event.
    for own in ["grep", "Shell", "Read", "Agent", "MCP:grep"] {
        let named = json!({ "tool_name": format!("MCP:{own}"), "tool_input": input });
        let by_event = json!({ "tool_name": own, "tool_input": input });
        for payload in [cursor("preToolUse", &named), cursor("beforeMCPExecution", &by_event)] {
            assert_eq!(
                judged(Agent::Cursor, &payload),
                (ActionKind::ToolCall, format!("cursor/MCP:{own}"), input.clone())
            );
        }
    }
    // The others tell its server, which may have any name but an agent's.
    for agent in Agent::ALL {
        let server = agent.as_str();
        let mut apart = claude(&format!("mcp__{server}__Grep"), &input);
        apart["mcp_server"] = json!({ "name": server });
        let mut by_gemini = gemini("mcp_tool", &input);
        by_gemini["mcp_context"] = json!({ "server_name": server, "tool_name": "glob" });
        for (agent, payload) in [
            (Agent::ClaudeCode, claude(&format!("mcp__{server}__Grep"), &input)),
            (Agent::ClaudeCode, apart),
            (Agent::Codex, codex(&format!("mcp__{server}__update_plan"), &input)),
            (Agent::Gemini, by_gemini),
        ] {
            assert_eq!(hook(agent, &payload), Err(HookError::AgentsName), "{payload}");
        }
    }
    // These cannot be taken apart; what is before the tool's name stays before it.
    let by_copilot = copilot("shop-report_intent", &input);
    assert_eq!(judged(Agent::Copilot, &by_copilot).1, "copilot/shop-report_intent");
    let by_vscode = vscode("mcp_shop_grep_search", &input);
    assert_eq!(judged(Agent::Vscode, &by_vscode).1, "vscode/mcp_shop_grep_search");
}

#[test]
fn other_tools_are_the_agents_own() {
    let input = json!({ "url": "https://x.example" });
    assert_eq!(
        judged(Agent::ClaudeCode, &claude("WebFetch", &input)),
        (ActionKind::ToolCall, "claude-code/WebFetch".into(), input)
    );
    assert_eq!(judged(Agent::Codex, &codex("view_image", &json!({}))).1, "codex/view_image");
}

#[test]
fn a_patch_is_a_write_of_each_file() {
    let patch = "*** Begin Patch\n*** Update File: src/a.rs\n*** Move to: src/b.rs\n@@\n-x\n+y\n  *** Add File: ../c\n+z\n*** Delete File: /d\n*** End of File\n*** End Patch\n";
    for (agent, payload) in [
        (Agent::Codex, codex("apply_patch", &json!({ "command": patch }))),
        (Agent::Copilot, copilot("apply_patch", &json!(patch))),
        (Agent::Copilot, copilot("apply_patch", &json!({ "input": patch }))),
        (Agent::Vscode, vscode("apply_patch", &json!({ "input": patch, "explanation": "x" }))),
    ] {
        let actions = hook(agent, &payload).unwrap().actions;
        let named: Vec<&str> =
            actions.iter().map(|action| action.resource.as_deref().unwrap()).collect();
        assert_eq!(named, ["/work/src/a.rs", "/work/src/b.rs", "/c", "/d"]);
        assert!(actions.iter().all(|action| action.kind == ActionKind::FileWrite));
        assert!(actions[1].arguments["patch"].as_str().unwrap().contains("+y"));
    }
    let many = "*** Add File: a\n".repeat(MAX_ACTIONS + 1);
    for patch in [
        "",
        "*** Begin Patch\n*** End Patch",
        "*** Rename File: a",
        "*** Add File:",
        "*** Environment ID: x",
        &many,
    ] {
        assert!(
            hook(Agent::Codex, &codex("apply_patch", &json!({ "command": patch }))).is_err(),
            "{patch}"
        );
    }
}

#[test]
fn a_prompt_is_one() {
    let claude = json!({ "hook_event_name": "UserPromptSubmit", "prompt": "hi", "cwd": "/w" });
    let cases = [
        (Agent::ClaudeCode, claude.clone()),
        (Agent::Codex, claude),
        (Agent::Gemini, json!({ "hook_event_name": "BeforeAgent", "prompt": "hi" })),
        (Agent::Copilot, json!({ "timestamp": 1, "cwd": "/w", "prompt": "hi" })),
        (
            Agent::Cursor,
            json!({ "hook_event_name": "beforeSubmitPrompt", "prompt": "hi", "attachments": [] }),
        ),
        (Agent::Vscode, json!({ "hookEventName": "UserPromptSubmit", "prompt": "hi" })),
    ];
    for (agent, payload) in cases {
        let hook = hook(agent, &payload).unwrap();
        assert_eq!(hook.event, Event::Prompt);
        assert_eq!(hook.actions[0].method, "prompt.submit");
        assert_eq!(hook.actions[0].arguments, json!({ "prompt": "hi" }));
    }
}

#[test]
fn what_is_no_payload_is_refused() {
    let ls = json!({ "command": "ls" });
    let good = claude("Bash", &ls);
    let with = |member: &str, value: Value| {
        let mut changed = good.clone();
        changed[member] = value;
        changed
    };
    let mut bad = vec![
        json!([]),
        json!({}),
        with("hook_event_name", json!("PostToolUse")),
        with("hook_event_name", json!(1)),
        with("tool_name", json!("")),
        with("tool_name", json!("re\u{200b}ad")),
        with("tool_name", json!("x".repeat(300))),
        with("tool_input", json!("ls")),
        with("tool_input", json!(null)),
        claude("Bash", &json!({ "command": ["rm", "-rf"] })),
        claude("Bash", &json!({})),
        claude("Write", &json!({ "path": "/a" })),
        claude("Write", &json!({ "file_path": "~/a" })),
        claude("Write", &json!({ "file_path": "/a\nb" })),
        claude("Write", &json!({ "file_path": format!("/{}", "a".repeat(5000)) })),
        claude("mcp__\u{202e}__x", &json!({})),
    ];
    let mut nowhere = claude("Write", &json!({ "file_path": "a", "content": "" }));
    nowhere.as_object_mut().unwrap().remove("cwd");
    bad.push(nowhere);
    for payload in bad {
        assert!(hook(Agent::ClaudeCode, &payload).is_err(), "{payload}");
    }
    // Strictly, also inside a text that is JSON.
    let twice = br#"{"hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":{"command":"ls","command":"rm"}}"#;
    let refused = read(Agent::ClaudeCode, twice, Limits::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::DuplicateKey);
    let inside = copilot("bash", &json!(r#"{"command":"ls","command":"rm"}"#));
    assert_eq!(hook(Agent::Copilot, &inside).unwrap_err().reason(), Reason::DuplicateKey);
    // Another agent's payload is none.
    assert!(hook(Agent::Gemini, &good).is_err());
    assert!(hook(Agent::Copilot, &gemini("run_shell_command", &ls)).is_err());
}

#[test]
fn a_refusal_is_an_exit_code_and_the_agents_own_form() {
    for agent in Agent::ALL {
        for event in [Event::Tool, Event::Prompt] {
            let answer = denied(agent, Some(event), "no \"way\"");
            assert_eq!((answer.code, answer.stderr.as_str()), (2, "no \"way\""));
            let said: Value = serde_json::from_str(&answer.stdout).unwrap();
            assert!(said.to_string().contains("no \\\"way\\\""), "{said}");
            assert_eq!(allowed(agent, event).code, 0);
        }
        assert_eq!(denied(agent, None, "no"), denied(agent, Some(Event::Tool), "no"));
        // No objection is not permission: the agent's own user is still asked. Cursor knows no third.
        let said = allowed(agent, Event::Tool).stdout;
        assert!(agent == Agent::Cursor || !said.contains("allow"), "{said}");
    }
    // Codex takes no member that its schema does not have.
    let codex: Value =
        serde_json::from_str(&denied(Agent::Codex, Some(Event::Tool), "x").stdout).unwrap();
    assert_eq!(
        codex,
        json!({ "hookSpecificOutput": {
            "hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": "x",
        } })
    );
}
