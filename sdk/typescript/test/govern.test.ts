/** What a governed function does, against a real daemon, and what the ledger says of it. */

import assert from "node:assert/strict";
import { writeFileSync, readFileSync, unlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { Aegis, ApprovalRequired, Denied, govern, governed, toolCall, Unavailable } from "../src/index.js";
import { Daemon } from "./daemon.js";

let daemon: Daemon;
let aegis: Aegis;
before(async () => {
  daemon = await Daemon.start();
  aegis = new Aegis({ socket: daemon.socket });
});
after(async () => {
  aegis.close();
  await daemon.end();
});

interface Query {
  readonly query: string;
}

function queries(ran: string[], client: Aegis = aegis, tool = "read_query") {
  return govern(
    ({ query }: Query) => {
      ran.push(query);
      if (query === "boom") throw new RangeError(query);
      return query.length;
    },
    { tool, server: "shop", aegis: client },
  );
}

test("a function wrapped in one line is denied and recorded", async () => {
  const ran: string[] = [];
  const denied = await rejection(queries(ran)({ query: "DROP TABLE orders" }), Denied);
  assert.deepEqual(ran, []);
  assert.deepEqual([denied.reason, denied.sentence], ["policy_denied", "Tables are never dropped."]);
  const entry = daemon.entries("decision").find((entry) => entry.decision_id === denied.decisionId);
  assert.deepEqual([entry?.result, entry?.action["protocol"], entry?.action["tool"]], ["deny", "kernel", "read_query"]);
});

test("what is allowed runs once and has one outcome", async () => {
  const ran: string[] = [];
  const before = daemon.entries("decision").length;
  assert.equal(await queries(ran)({ query: "SELECT 1" }), 8);
  assert.deepEqual(ran, ["SELECT 1"]);
  const decisions = daemon.entries("decision");
  assert.equal(decisions.length, before + 1);
  assert.deepEqual(await daemon.outcomes(decisions.at(-1)?.decision_id), ["success"]);
  await assert.rejects(queries(ran)({ query: "boom" }), RangeError);
  assert.deepEqual(await daemon.outcomes(daemon.entries("decision").at(-1)?.decision_id), ["failure"]);
});

test("no policy allows what none names", async () => {
  const launch = govern(function launch() { assert.fail("it must not run"); }, { aegis });
  assert.equal((await rejection(launch(), Denied)).reason, "no_policy_allows");
});

test("without a daemon nothing runs", async () => {
  const ran: string[] = [];
  const away = new Aegis({ socket: join(daemon.folder, "nobody.sock") });
  const unavailable = await rejection(queries(ran, away)({ query: "SELECT 1" }), Unavailable);
  assert.match(unavailable.message, /aegis up/);
  assert.deepEqual(ran, []);
});

test("an answer that is none permits nothing", async () => {
  const path = join(daemon.folder, "lying.sock");
  for (const answer of [
    "",
    "HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"decision\": true}",
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"decision\": true",
    "HTTP/1.1 500 Oh\r\ncontent-length: 50\r\n\r\n{\"decision\":true,\"context\":{\"verdict\":\"allow\"}}   ",
    "hello\r\n\r\n",
  ]) {
    const server = createServer((socket) => socket.once("data", () => socket.end(answer)));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const ran: string[] = [];
    const client = new Aegis({ socket: path });
    await rejection(queries(ran, client)({ query: "SELECT 1" }), Unavailable);
    assert.deepEqual(ran, [], answer);
    client.close();
    await new Promise((resolve) => server.close(resolve));
  }
});

test("a daemon that is silent permits nothing", async () => {
  const path = join(daemon.folder, "silent.sock");
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = new Aegis({ socket: path, timeout: 100 });
  await rejection(queries([], client)({ query: "SELECT 1" }), Unavailable);
  client.close();
  server.close();
});

test("an approval is used once", async () => {
  const ran: string[] = [];
  const write = queries(ran, aegis, "write_query");
  const asked = await rejection(write({ query: "INSERT 1" }), ApprovalRequired);
  assert.equal(asked.sentence, "Changes need a human.");
  assert.equal(daemon.run(["approvals", "approve", asked.approval]).status, 0);
  const other = await rejection(write({ query: "INSERT 2" }), ApprovalRequired);
  assert.notEqual(other.approval, asked.approval);
  await write({ query: "INSERT 1" });
  await rejection(write({ query: "INSERT 1" }), ApprovalRequired);
  assert.deepEqual(ran, ["INSERT 1"]);
});

test("a call can wait for a human", async () => {
  const again = await aegis.evaluate("write_query", { query: "INSERT waits" }, { server: "shop" });
  assert.ok(again.approval);
  const waiting = aegis.evaluate("write_query", { query: "INSERT waits" }, { server: "shop", wait: 30_000 });
  // The command answers while the question is held.
  daemon.run(["approvals", "approve", again.approval]);
  const decision = await waiting;
  assert.deepEqual([decision.allowed, decision.reason], [true, "approved"]);
  await aegis.report(decision, "success");
});

test("an outcome is reported once", async () => {
  const decision = await aegis.evaluate(toolCall("read_query", { query: "SELECT 2" }, "shop"));
  await aegis.report(decision, "failure");
  await rejection(aegis.report(decision, "success"), Denied);
  assert.deepEqual(await daemon.outcomes(decision.decisionId), ["failure"]);
});

test("what JSON cannot say is not run", async () => {
  const ran: unknown[] = [];
  const add = govern((item: object) => ran.push(item), { tool: "add", server: "shop", aegis });
  const circle: Record<string, unknown> = {};
  circle["self"] = circle;
  for (const item of [circle, { n: Number.NaN }, { f: () => 1 }, { at: new Date() }, { n: 2 ** 60 }, { s: Symbol() }]) {
    await rejection(add(item), Denied);
  }
  await assert.rejects(govern((n: number) => n, { tool: "add", aegis })(7), TypeError);
  assert.deepEqual(ran, []);
});

test("what changes while it is decided is not run", async () => {
  const ran: string[] = [];
  const query = { query: "SELECT 1" };
  const running = queries(ran)(query);
  query.query = "DROP TABLE orders";
  await rejection(running, Denied);
  assert.deepEqual(ran, []);
});

test("methods are governed by a decorator", async () => {
  class Shop {
    readonly items: string[] = [];

    @governed<[{ item: string }]>({ server: "shop" })
    async add({ item }: { item: string }): Promise<number> {
      return this.items.push(item);
    }
  }
  // The shared client finds the daemon by the environment.
  process.env["AEGIS_KERNEL_SOCKET"] = daemon.socket;
  const shop = new Shop();
  assert.equal(await shop.add({ item: "tea" }), 1);
  assert.deepEqual(shop.items, ["tea"]);
  (await import("../src/govern.js")).sharedAegis().close();
});

test("events tell of policies and of one's own decisions", async () => {
  const events = aegis.events();
  const first = await next(events, (event) => event.name === "policy");
  const decision = await aegis.evaluate("read_query", { query: "SELECT 3" }, { server: "shop" });
  const told = await next(events, (event) => event.data["decision_id"] === decision.decisionId);
  assert.deepEqual([told.name, told.data["result"], told.id], ["decision", "allow", String(decision.index)]);
  const more = join(daemon.folder, "aegis.d", "more.yaml");
  const policy = "spec: {rules: [{name: more, effect: deny, tools: [more]}]}";
  writeFileSync(more, `apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: more}\n${policy}\n`);
  const changed = await next(events, (event) => event.name === "policy");
  assert.ok(Number(changed.data["version"]) > Number(first.data["version"]));
  unlinkSync(more);
  await events.return(undefined);
  await aegis.report(decision, "success");
});

test("a token is asked for on loopback", async () => {
  const token = readFileSync(join(daemon.state, "kernel.token"), "utf8").trim();
  const known = new Aegis({ url: daemon.url, token });
  assert.ok((await known.evaluate("read_query", { query: "SELECT 4" }, { server: "shop" })).allowed);
  known.close();
  const stranger = new Aegis({ url: daemon.url, token: "0".repeat(64) });
  assert.equal((await rejection(stranger.evaluate("read_query"), Denied)).reason, "identity_missing");
  stranger.close();
});

test("a daemon that was away is found again", async () => {
  const own = await Daemon.start();
  const client = new Aegis({ socket: own.socket });
  const ran: string[] = [];
  const read = queries(ran, client);
  await read({ query: "SELECT 1" });
  await own.stop("SIGKILL");
  await rejection(read({ query: "SELECT 2" }), Unavailable);
  await own.up();
  await read({ query: "SELECT 3" });
  assert.deepEqual(ran, ["SELECT 1", "SELECT 3"]);
  client.close();
  await own.end();
});

async function rejection<E extends Error>(running: Promise<unknown>, kind: abstract new (...args: never[]) => E): Promise<E> {
  try {
    await running;
  } catch (error) {
    assert.ok(error instanceof kind, String(error));
    return error;
  }
  return assert.fail("it ran");
}

async function next<T>(events: AsyncGenerator<T>, wanted: (event: T) => boolean): Promise<T> {
  for (;;) {
    const { value, done } = await events.next();
    if (done === true) return assert.fail("the events have ended");
    if (wanted(value)) return value;
  }
}
