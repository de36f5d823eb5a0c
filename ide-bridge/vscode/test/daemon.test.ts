// The daemon as it answers, and everything that only looks like it, on real sockets.

import { strict as assert } from "node:assert";
import { chownSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, test } from "node:test";

import * as answers from "../src/daemon/answers.ts";
import { Control, Judge, Refused, UNANSWERED } from "../src/daemon/client.ts";
import { Connection, isOld, type State } from "../src/daemon/connection.ts";
import { EventCutter } from "../src/daemon/http.ts";
import { findSockets, look } from "../src/daemon/sockets.ts";

let folder = "";
let open: http.Server[] = [];

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), "aegis-vscode-"));
});

afterEach(() => {
  for (const server of open) server.closeAllConnections();
  for (const server of open) server.close();
  open = [];
  rmSync(folder, { recursive: true });
});

type Answering = (request: http.IncomingMessage, body: string, response: http.ServerResponse) => void;

async function serve(name: string, answer: Answering): Promise<string> {
  const server = http.createServer((request, response) => {
    void request.setEncoding("utf8").toArray().then((parts: string[]) => { answer(request, parts.join(""), response); });
  });
  open.push(server);
  const socket = path.join(folder, name);
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  return socket;
}

const STATUS = {
  version: "0.1.0", pid: 7, config: "/c", audit: "strict", advisory: [], not_covered: [], problems: [], warnings: [], upstreams: [], policies: [],
  agents: [{ id: "spiffe://d/ns/default/sa/default/agent/desk", sponsor: "a", trust: 500, quarantined: false, revoked: false }],
  ledger: { place: "p", origin: "o", size: 3, verifier_key: "k" },
};
const ALLOWED = { decision: true, context: { verdict: "allow", reason: "policy_allowed", message: "A policy allows it.", decision_id: "d1", index: 4 } };
const WRITE = { path: "/w/a.txt", content: "hello", mode: "enforce" } as const;

const says = (value: unknown, status = 200): Answering => (_request, _body, response) => {
  response.writeHead(status, { "content-type": "application/json" }).end(typeof value === "string" ? value : JSON.stringify(value));
};

async function stateOf(control: string): Promise<State> {
  const connection = new Connection(() => ({ control, kernel: path.join(folder, "kernel.sock"), named: false }), () => undefined);
  await connection.refresh();
  connection.dispose();
  return connection.state;
}

test("the sockets are where the command looks for them", () => {
  const none = (): boolean => false;
  assert.equal(findSockets("/x/c.sock", { AEGIS_SOCKET: "/y" }, none).control, "/x/c.sock");
  assert.equal(findSockets("~/c.sock", { HOME: "/h" }, none).control, "/h/c.sock");
  assert.deepEqual(findSockets("", { AEGIS_SOCKET: "/y/c.sock" }, none), { control: "/y/c.sock", kernel: "/y/kernel.sock", named: true });
  assert.equal(findSockets("", { AEGIS_STATE: "/s", HOME: "/h" }, none).control, "/s/control.sock");
  assert.equal(findSockets("", { XDG_STATE_HOME: "/x", HOME: "/h" }, none).control, "/x/aegis/control.sock");
  assert.deepEqual(findSockets("", { HOME: "/h" }, none), { control: "/h/.local/state/aegis/control.sock", kernel: "/h/.local/state/aegis/kernel.sock", named: false });
  assert.equal(findSockets("", { HOME: "/h" }, (file) => file.startsWith("/run/")).control, "/run/aegis/control.sock");
});

test("what is no socket, or another user's in one's own folder, is foreign", async () => {
  const control = await serve("control.sock", says(STATUS));
  const kernel = path.join(folder, "kernel.sock");
  const uid = process.getuid!();
  assert.equal(look({ control, kernel, named: false }, uid).kind, "there");
  assert.equal(look({ control: kernel, kernel, named: false }, uid).kind, "absent");
  writeFileSync(kernel, "");
  assert.equal(look({ control: kernel, kernel, named: false }, uid).kind, "foreign");
  // Root's sockets are everybody's.
  if (uid === 0) chownSync(control, 4_242, 4_242);
  assert.equal(look({ control, kernel, named: false }, uid + 1).kind, "foreign");
  assert.equal(look({ control, kernel, named: true }, uid + 1).kind, "there");
});

test("a daemon that is away, old, foreign or talks nonsense is told apart", async () => {
  assert.equal((await stateOf(path.join(folder, "none.sock"))).kind, "away");
  const up = await stateOf(await serve("up.sock", says(STATUS)));
  // Nothing says yet that the kernel API knows this editor.
  assert.notEqual("unjudged" in up ? up.unjudged : "", "");
  assert.equal((await stateOf(await serve("old.sock", says({ ...STATUS, version: "0.0.9" })))).kind, "old");
  assert.equal((await stateOf(await serve("word.sock", says({ ...STATUS, version: "soon" })))).kind, "foreign");
  assert.equal((await stateOf(await serve("nonsense.sock", says("<html>")))).kind, "foreign");
  assert.equal((await stateOf(await serve("other.sock", says({ status: "ok" })))).kind, "foreign");
  assert.equal((await stateOf(await serve("none404.sock", says("no", 404)))).kind, "foreign");
  const closed = await serve("closed.sock", (_request, _body, response) => { response.destroy(); });
  assert.equal((await stateOf(closed)).kind, "away");
});

test("versions are compared by number", () => {
  assert.deepEqual(["0.1.0", "0.0.10", "0.10.0", "1.0.0", "0.1.0-rc.1"].map(isOld), [false, true, false, false, false]);
  assert.equal(isOld("v1"), undefined);
});

test("a question says what is written, where it goes, and how it is obeyed", async () => {
  let asked: unknown;
  const socket = await serve("kernel.sock", (request, body, response) => {
    asked = { url: request.url, body: JSON.parse(body) as unknown };
    says(ALLOWED)(request, body, response);
  });
  const verdict = await new Judge(socket).write(WRITE, 5_000);
  assert.ok(verdict.allowed && verdict.decision === "d1");
  assert.deepEqual(asked, {
    url: "/access/v1/evaluation",
    body: {
      subject: { type: "agent", id: "self" },
      action: { name: "file.write", properties: WRITE },
      resource: { type: "file", id: "/w/a.txt", properties: { server: "editor" } },
    },
  });
});

test("nothing but a whole and clear yes allows", async () => {
  const context = ALLOWED.context;
  const bad: [string, Answering][] = [
    ["not JSON", says("yes")],
    ["no context", says({ decision: true })],
    ["a word for a flag", says({ decision: "true", context })],
    ["a contradiction", says({ decision: true, context: { ...context, verdict: "deny" } })],
    ["another contradiction", says({ decision: false, context })],
    ["no decision to conclude", says({ decision: true, context: { ...context, decision_id: undefined } })],
    ["a yes with an error", says(ALLOWED, 500)],
    ["a stranger", says({ message: "No AgentIdentity is registered for the caller.", reason: "identity_unknown" }, 403)],
    ["a broken connection", (_request, _body, response) => { response.destroy(); }],
    ["half an answer", (_request, _body, response) => { response.writeHead(200, { "content-length": "1000" }).write("{", () => response.destroy()); }],
  ];
  for (const [what, answer] of bad) {
    const socket = await serve(`${what}.sock`, answer);
    const verdict = await new Judge(socket).write(WRITE, 5_000);
    assert.equal(verdict.allowed, false, what);
    assert.equal(verdict.reason, what === "a stranger" ? "identity_unknown" : UNANSWERED, what);
  }
  assert.equal((await new Judge(path.join(folder, "none.sock")).write(WRITE, 5_000)).allowed, false);
});

test("a daemon that hangs is no yes, and is not waited for", async () => {
  const socket = await serve("hangs.sock", () => undefined);
  const verdict = await new Judge(socket).write(WRITE, 50);
  assert.equal(verdict.allowed, false);
  assert.match(verdict.message, /no answer from .* in 50 ms/);
});

test("an order that lacks its code is told from one that is refused", async () => {
  const socket = await serve("control.sock", (request, body, response) => {
    const { totp } = JSON.parse(body) as { totp?: string };
    const message = totp ? "the code is not valid now" : "a second factor is enrolled; confirm with --totp and its code";
    says({ message }, 403)(request, body, response);
  });
  const control = new Control(socket);
  const failed = async (totp: string | undefined): Promise<Refused> => {
    try {
      await control.vote("a/b", true, "fine", totp);
    } catch (error) {
      if (error instanceof Refused) return error;
    }
    throw new Error("it was not refused");
  };
  assert.equal((await failed(undefined)).wantsCode, true);
  assert.equal((await failed("123456")).wantsCode, false);
});

test("events are cut out of parts, and signs of life are none", () => {
  const cutter = new EventCutter();
  assert.deepEqual(cutter.take("event: policy\ndata: {\"ver"), []);
  assert.deepEqual(cutter.take("sion\":1}\n\n:\n\nevent: decision\nid: 5\nda"), [{ event: "policy", data: '{"version":1}' }]);
  assert.deepEqual(cutter.take("ta: {}\n\n"), [{ event: "decision", data: "{}" }]);
});

test("the rules against are those that count and do not allow", () => {
  const policies = [
    { name: "a#1", effect: "allow", mode: "enforce" },
    { name: "a#2", effect: "deny", mode: "enforce" },
    { name: "a#3", effect: "deny", mode: "audit" },
    { name: "a#4", effect: "require_approval", mode: "enforce" },
  ];
  assert.deepEqual(answers.rulesAgainst({ policies }), ["a#2", "a#4"]);
});

test("a preview is about the same action as the save, and names no decision", async () => {
  const seen: { path: string | undefined; body: unknown }[] = [];
  const told = { verdict: "require_approval", reason: "approval_by_policy", message: "A person looks.", approval: "a1", decision: true, decision_id: "d1" };
  const socket = await serve("kernel.sock", (request, body, response) => {
    seen.push({ path: request.url, body: JSON.parse(body) });
    says(request.url === "/v1/preview" ? told : ALLOWED)(request, body, response);
  });
  const judge = new Judge(socket);
  const preview = await judge.preview(WRITE, 5_000);
  assert.deepEqual([preview?.allowed, preview?.approval, preview?.decision], [false, "a1", undefined]);
  assert.equal((await judge.write(WRITE, 5_000)).allowed, true);
  assert.deepEqual(seen.map((one) => one.path), ["/v1/preview", "/access/v1/evaluation"]);
  assert.deepEqual(seen[0]?.body, seen[1]?.body);
});

test("without a usable preview nothing is shown", async () => {
  for (const [answer, status] of [["no such path", 404], [{ verdict: "allow" }, 200], ["x", 200], [{ message: "too often", reason: "overloaded" }, 503]] as const) {
    const socket = await serve("kernel.sock", says(answer, status));
    assert.equal(await new Judge(socket).preview(WRITE, 5_000), undefined);
    assert.equal(await new Judge(socket).self(), undefined);
    for (const server of open.splice(0)) server.close();
    rmSync(socket, { force: true });
  }
  assert.equal(await new Judge(path.join(folder, "none.sock")).self(), undefined);
});

test("what is not certainly enforced is advisory", () => {
  const caller = { agent: "spiffe://d/ns/default/sa/default/agent/desk", trust: 421, standing: "probationary", stopped: false, tier: "L1" };
  for (const [mode, advisory] of [["enforced", false], ["advisory", true], ["something new", true]] as const) {
    assert.deepEqual(answers.caller({ ...caller, mode }), { ...caller, advisory });
  }
  assert.throws(() => answers.caller(caller), answers.Nonsense);
});

test("what operators are told of makes it look at once", async () => {
  let listener: http.ServerResponse | undefined;
  let size = 3;
  const control = await serve("control.sock", (request, body, response) => {
    if (request.url === "/v1/events") {
      listener = response.writeHead(200, { "content-type": "text/event-stream" });
      listener.flushHeaders();
    } else says({ ...STATUS, ledger: { ...STATUS.ledger, size } })(request, body, response);
  });
  // Nobody looks by the clock here: this connection is not started.
  const connection = new Connection(() => ({ control, kernel: path.join(folder, "none.sock"), named: false }), () => undefined);
  const until = async (holds: () => boolean): Promise<void> => {
    for (const start = Date.now(); !holds(); await new Promise((resolve) => setTimeout(resolve, 5))) assert.ok(Date.now() - start < 10_000);
  };
  await connection.refresh();
  await until(() => listener !== undefined);
  for (size = 4; size < 7; size += 1) {
    listener?.write(`event: approval_requested\ndata: {"index":${String(size)}}\n\n`);
    await until(() => connection.status?.ledger.size === size);
  }
  connection.dispose();
});

test("breaking the glass says for whom, how long and why", async () => {
  const seen: unknown[] = [];
  const control = await serve("control.sock", (request, body, response) => {
    seen.push([request.method, request.url, JSON.parse(body)]);
    says({ index: 1 })(request, body, response);
  });
  await new Control(control).glass("spiffe://d/x", 15, "restore the orders", "123456");
  await new Control(control).glass("spiffe://d/x", 0, "done", undefined);
  assert.deepEqual(seen, [
    ["POST", "/v1/glass", { agent: "spiffe://d/x", minutes: 15, reason: "restore the orders", totp: "123456" }],
    ["POST", "/v1/glass", { agent: "spiffe://d/x", minutes: 0, reason: "done" }],
  ]);
});
