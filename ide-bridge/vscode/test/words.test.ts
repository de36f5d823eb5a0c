// What is said, and that it is never better than it is.

import { strict as assert } from "node:assert";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import type { Approval, Status, Trust } from "../src/daemon/answers.ts";
import type { State } from "../src/daemon/connection.ts";
import { approvalText, auditText, bar, code, entryLine, left, serverOf, statusText, subject, trustText } from "../src/editor/words.ts";

const DESK = "spiffe://d/ns/default/sa/default/agent/desk";
const status: Status = {
  version: "0.1.0", pid: 1, config: "/c", audit: "strict", advisory: [], notCovered: [], problems: [], warnings: [], upstreams: [], policies: [], agents: [],
  ledger: { size: 3, origin: "o", verifierKey: "k" },
};
const trust: Trust[] = [{ agent: DESK, score: 421, standing: "probationary", stage: "CBT", belowCritical: 300, quarantined: false }];
const self = { agent: DESK, tier: "L1", told: undefined };
const up = (more: Partial<Status> = {}, unjudged = ""): State => ({ kind: "up", status: { ...status, ...more }, unjudged });

test("the bar shows mode, trust, tier, what waits, and that it is advisory", () => {
  assert.equal(bar(up(), "enforce", self, trust, 0).text, "$(shield) Aegis enforce · trust 421 · L1");
  assert.equal(bar(up({ advisory: ["one user"] }), "assist", self, trust, 2).text, "$(shield) Aegis assist · trust 421 · L1 · Advisory $(bell) 2");
  assert.equal(bar(up(), "observe", undefined, [], 0).text, "$(shield) Aegis observe");
  const agent = { id: DESK, sponsor: "a", trust: 421, quarantined: false, revoked: false, glassBrokenUntil: "2026-01-01T00:30:00Z" };
  const lifted = bar(up({ agents: [agent] }), "enforce", self, trust, 0);
  assert.deepEqual([lifted.text, lifted.level], ["$(warning) Aegis enforce · trust 421 · L1 · glass broken", "warning"]);
  assert.match(lifted.tooltip, /lifted for this editor until 2026-01-01T00:30:00Z/);
  // What the daemon says of the caller goes before what is guessed of it.
  const told = { agent: DESK, trust: 640, standing: "standard", stopped: false, tier: "L2", advisory: true };
  const known = bar(up(), "enforce", { agent: DESK, tier: "L2", told }, trust, 0);
  assert.equal(known.text, "$(shield) Aegis enforce · trust 640 · L2 · Advisory");
  assert.match(known.tooltip, /Advisory only: /);
  assert.equal(bar(up(), "enforce", { agent: DESK, tier: "L2", told: { ...told, stopped: true } }, [], 0).level, "warning");
});

test("the bar never looks fine where nothing is judged", () => {
  const states: State[] = [{ kind: "away", message: "m" }, { kind: "foreign", message: "m" }, { kind: "old", message: "m" }];
  for (const state of states) {
    assert.match(bar(state, "enforce", self, trust, 0).text, /saves refused/);
    assert.match(bar(state, "assist", self, trust, 0).text, /saves unchecked/);
    for (const mode of ["observe", "assist", "enforce"] as const) assert.notEqual(bar(state, mode, self, trust, 0).level, "fine");
  }
  const blind = bar(up({}, "No AgentIdentity is registered for the caller."), "enforce", self, trust, 0);
  assert.match(blind.text, /editor not judged, saves refused/);
  assert.match(blind.tooltip, /No AgentIdentity/);
  assert.equal(bar(up({}, "x"), "observe", self, trust, 0).level, "fine");
  assert.equal(bar(up(), "enforce", self, [{ ...trust[0]!, quarantined: true }], 0).level, "warning");
});

const approval: Approval = {
  id: "a1", state: "pending", agent: DESK, sponsor: "ada@acme.example", server: "editor", method: "file.write", tool: undefined, resource: undefined,
  arguments: { path: "/w/deploy/x.yaml", content: "replicas: 9" }, digest: "sha256:00", message: "A person looks.", reason: "approval_by_policy",
  risk: 485, trust: 423, tier: "L1", quorum: 2, mfa: true, votes: [{ approver: "bob", approve: true, factor: "totp", comment: "ok" }],
  requestedAt: "2026-01-01T00:00:00Z", expiresAt: "2026-01-01T00:15:00Z",
};

test("who decides sees who, what, why, the risk, the answers so far and every argument", () => {
  const text = approvalText(approval);
  for (const part of [DESK, "ada@acme.example", "file.write /w/deploy/x.yaml", "A person looks.", "485 of 1000", "2 people, with a one-time code", "bob: yes (totp), ok", "sha256:00", '"content": "replicas: 9"']) {
    assert.ok(text.includes(part), part);
  }
  assert.deepEqual(subject({ ...approval, tool: "write_query", arguments: null }), { verb: "write_query", target: "editor" });
  // Where the arguments are kept out of the record, the file is still named.
  assert.deepEqual(subject({ ...approval, resource: "/w/a", arguments: "[redacted]" }), { verb: "file.write", target: "/w/a" });
  assert.equal(left(approval.expiresAt, new Date("2026-01-01T00:01:00Z")), "14 min left");
  assert.equal(left(approval.expiresAt, new Date("2026-01-01T00:14:00Z")), "60 s left");
  assert.equal(left(approval.expiresAt, new Date("2026-01-02T00:00:00Z")), "expired");
});

test("an entry is told in one line, whatever it lacks", () => {
  const entry = { action: { method: "file.write", server: "editor" }, resource: "/w/a", result: "deny", agent_id: DESK, reason: "policy_denied", policies: [{ name: "p#r", effect: "deny", mode: "enforce" }] };
  assert.deepEqual(entryLine({ index: 1, leafHash: "", entry }), { what: "file.write /w/a", verb: "file.write", target: "/w/a", result: "deny", who: "desk", why: "policy_denied: p#r" });
  assert.deepEqual(entryLine({ index: 1, leafHash: "", entry: { kind: "policy_loaded" } }).what, "policy_loaded");
});

test("words of others are shown in the chat and never interpreted", () => {
  assert.equal(code("a`b|c\n[x](command:y)"), "`a b c [x](command:y)`");
  const hostile = { index: 1, leafHash: "", entry: { resource: "|[x](command:aegis.approve)`\n# y", result: "deny" } };
  assert.equal(auditText([hostile]).split("\n").length, 3);
  assert.match(auditText([hostile]), /`\[x\]\(command:aegis.approve\)\s+# y`/);
  assert.match(statusText(up({ problems: ["a `b`"], advisory: ["one user"], notCovered: ["n"] }), "assist"), /Problem: `a {2}b`[\s\S]*Advisory only: `one user`[\s\S]*Not covered: `n`/);
  assert.match(statusText({ kind: "away", message: "nothing is at /x" }, "enforce"), /Nothing is governed from here, and saves are refused/);
  assert.match(trustText(trust), /\| `desk` \| 421 \| probationary \| CBT \| no \|/);
});

test("only servers behind this machine's daemon are offered to the editor", () => {
  assert.deepEqual(serverOf("http://127.0.0.1:7101/mcp"), { url: "http://127.0.0.1:7101/mcp" });
  assert.deepEqual(serverOf("aegis wrap --server notes"), { args: ["wrap", "--server", "notes"] });
  for (const bad of ["https://elsewhere.example/mcp", "http://127.0.0.1.elsewhere.example:80/", "aegis wrap --server a -- COMMAND", "aegis wrap --server a; rm", ""]) {
    assert.equal(serverOf(bad), undefined, bad);
  }
});

test("the manifest, the sources and the documentation name the same commands", () => {
  const read = (file: string): string => readFileSync(new URL(`../${file}`, import.meta.url), "utf8");
  const manifest = JSON.parse(read("package.json")) as {
    contributes: { commands: { command: string }[]; configuration: { properties: Record<string, { scope: string }> }; walkthroughs: { steps: { media: { markdown: string } }[] }[] };
  };
  const { commands, configuration, walkthroughs } = manifest.contributes;
  const declared = commands.map((one) => one.command).sort();
  const registered = [...read("src/editor/commands.ts").matchAll(/^ {4}"(aegis\.\w+)":/gm)].map((one) => one[1]).sort();
  assert.deepEqual(registered, declared);
  const docs = read("../../docs/vscode.md");
  for (const command of declared) assert.ok(docs.includes(`\`${command}\``), `docs/vscode.md names ${command}`);
  for (const [name, setting] of Object.entries(configuration.properties)) {
    assert.equal(setting.scope, "machine", `${name}: a repository that is opened cannot change it`);
    assert.ok(docs.includes(`\`${name}\``), `docs/vscode.md names ${name}`);
  }
  const media = readdirSync(new URL("../media", import.meta.url));
  for (const step of walkthroughs.flatMap((one) => one.steps)) assert.ok(media.includes(step.media.markdown.replace("media/", "")));
});
