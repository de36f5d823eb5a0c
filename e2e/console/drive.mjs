// The console in a real browser against a real daemon with real calls. AEGIS_SCREENSHOTS names a folder to keep what was seen.

import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import http from "node:http";
import path from "node:path";

import { Machine, until } from "../editor/machine.mjs";

const { AEGIS_BIN, AEGIS_SCREENSHOTS: SHOTS } = process.env;
/** The content policy allows nothing but the console's own: whatever the browser complains of is a defect. */
const complaints = [];
const machine = new Machine();
const started = Date.now();
const step = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${what}`);

let page;
let shots = 0;
let upstream;
let address;

async function shot(name, of = page) {
  if (!SHOTS) return;
  // Where a click has scrolled to is no part of what is shown.
  if (of === page) await page.evaluate(() => scrollTo(0, 0));
  mkdirSync(SHOTS, { recursive: true });
  await of.screenshot({ path: path.join(SHOTS, `${String(++shots).padStart(2, "0")}-${name}.png`) });
}

// ---- The server behind Aegis, and its client.

const ran = [];
const TOOLS = ["read_orders", "change_order", "drop_table"].map((name) => ({ name, description: `${name} of the shop`, inputSchema: { type: "object" } }));

function serve() {
  const server = http.createServer(async (request, response) => {
    const message = JSON.parse((await request.setEncoding("utf8").toArray()).join(""));
    if (message.id === undefined) return response.writeHead(202).end();
    let result = { tools: TOOLS };
    if (message.method === "tools/call") {
      ran.push(message.params);
      result = { content: [{ type: "text", text: `${message.params.name}: done` }] };
    }
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ jsonrpc: "2.0", id: message.id, result }));
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

/** Calls a tool through Aegis, and waits for as long as the call is held. */
async function call(name, args) {
  const response = await fetch(address, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/json, text/event-stream" },
    body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tools/call", params: { name, arguments: args } }),
  });
  return await response.text();
}

const CONFIG = (port) => `
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: buyer}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: ${process.getuid()}}}}
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: {name: default}
spec: {approvalsAtL3: 1, tMin: 400}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentUpstream
metadata: {name: shop}
spec: {url: 'http://127.0.0.1:${port}/mcp'}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: shop}
spec:
  match: {servers: [shop]}
  rules:
    - {name: read, effect: allow, tools: [read_orders]}
    - {name: change-with-a-person, effect: require_approval, tools: [change_order], reason: Changes to the shop need a person.}
    - {name: never-drop, effect: deny, tools: [drop_table], reason: Tables of the shop are never dropped.}
`;

function link(...more) {
  const printed = execFileSync(AEGIS_BIN, ["--socket", machine.at("state/control.sock"), "console", "-o", "json", ...more], { encoding: "utf8" });
  return JSON.parse(printed).url;
}

async function browse(options = {}) {
  const context = await machine.browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "light", ...options });
  const opened = await context.newPage();
  opened.setDefaultTimeout(20_000);
  opened.on("pageerror", (error) => complaints.push(String(error)));
  opened.on("console", (message) => {
    // What a test asks for in vain is no defect.
    if (message.type() === "error" && !/status of (401|403|404|409)|ERR_CONNECTION|ERR_INCOMPLETE/.test(message.text())) complaints.push(message.text());
  });
  opened.on("request", (request) => {
    if (!/^(http:\/\/127\.0\.0\.1:|data:|blob:)/.test(request.url())) complaints.push(`it asks ${request.url()}`);
  });
  return opened;
}

const rows = (of = page) => of.locator('.all [role="row"]');
const open = (title) => page.getByRole("navigation").getByRole("link", { name: title }).click();

async function strangers(url) {
  const base = url.slice(0, url.indexOf("#"));
  const stranger = await browse();
  await stranger.goto(base);
  await stranger.getByText("This page opens by a link").waitFor();
  await shot("door", stranger);
  await stranger.evaluate(() => sessionStorage.setItem("aegis-console", "0".repeat(64)));
  const asked = [];
  stranger.on("response", (response) => response.url().includes("/api/") && asked.push(response.status()));
  await stranger.goto(`${base}#/stream`);
  await stranger.reload();
  await stranger.getByText("this session is unknown or has ended").waitFor();
  assert.equal(await rows(stranger).count(), 0);
  assert.ok(asked.length > 0 && asked.every((status) => status === 401), `answers: ${asked}`);
  await stranger.goto(`${base}#${"0".repeat(64)}`);
  await stranger.reload();
  await stranger.getByText("this link was used before or is too old").waitFor();
  await stranger.context().close();
  step("without a link, and with a wrong token, nothing is seen");
}

async function stream(url) {
  await page.goto(url);
  await page.getByText("Nothing was decided yet").waitFor();
  await page.locator(".line.live").waitFor();
  assert.ok(!page.url().includes(url.split("#")[1]), "the code does not stay in the address");
  const paint = await page.evaluate(() => performance.getEntriesByType("paint").find((one) => one.name === "first-contentful-paint")?.startTime);
  step(`signed in by the link; first paint after ${Math.round(paint)} ms`);
  assert.ok(paint < 1000);
  await shot("empty");
  await page.reload();
  await page.getByText("Nothing was decided yet").waitFor();

  assert.match(await call("read_orders", { since: "2026-01-01" }), /read_orders: done/);
  await page.locator('[data-result="allow"]', { hasText: "shop · read_orders" }).waitFor();
  assert.match(await call("drop_table", { table: "orders", password: "hunter2" }), /policy_denied/);
  const denied = page.locator('[data-result="deny"]', { hasText: "shop · drop_table" });
  await denied.waitFor();
  assert.match(await denied.innerText(), /denied[\s\S]*buyer[\s\S]*policy_denied[\s\S]*tools/);
  assert.equal(ran.length, 1, "what is denied does not run");
  step("the stream shows calls as they are decided");
  for (let count = 0; count < 12; count++) await call(count % 5 === 4 ? "drop_table" : "read_orders", { page: count });
  await until("all rows are there", async () => (await rows().count()) === 14);
  await shot("stream-light");

  await page.getByLabel("Verdict").selectOption("deny");
  await until("denied ones alone", async () => (await rows().count()) === 3);
  await page.getByLabel("Layer").selectOption("editor");
  await page.getByText("Nothing in the ledger is like that").waitFor();
  await page.getByRole("button", { name: "Clear" }).click();
  await until("all again", async () => (await rows().count()) === 14);
  step("filters filter");

  await page.getByRole("grid").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  const chosen = await page.locator('[aria-selected="true"]').getAttribute("id");
  await page.keyboard.press("Enter");
  await page.getByText("Proven in this browser").waitFor();
  assert.ok(page.url().endsWith(`#/entry/${chosen.slice(4)}`));
  step("the keyboard moves and opens");
  await open("Stream");
}

async function entry() {
  await page.locator('[data-result="deny"]').last().getByRole("link").click();
  await page.getByText("Proven in this browser").waitFor();
  const text = await page.locator("main").innerText();
  for (const member of ["parent_hash", "sequence", "default/shop#never-drop", "policy_denied", "arguments_digest"]) assert.ok(text.includes(member), `${member} is shown`);
  assert.ok(!text.includes("hunter2"), "a secret among the arguments is not");
  await page.getByText("Proven in this browser").scrollIntoViewIfNeeded();
  await shot("entry");
  step("an entry's proof holds, computed in the browser");

  const index = page.url().split("/").at(-1);
  const lies = async (route) => {
    const answer = await route.fetch();
    await route.fulfill({ response: answer, body: (await answer.text()).replace("policy_denied", "policy_allowed") });
  };
  await page.route(`**/v1/entries/${index}`, lies);
  await page.reload();
  await page.getByText("Not proven:").waitFor();
  assert.equal(await page.getByText("Proven in this browser").count(), 0);
  await shot("tampered");
  await page.unroute(`**/v1/entries/${index}`, lies);
  step("an entry that was altered is not proven");
}

async function approvals() {
  const before = ran.length;
  const waits = call("change_order", { order: 17, item: "green tea", note: "as the customer asked\u202e" });
  await page.getByLabel("1 waiting").waitFor();
  await open("Approvals");
  const question = page.getByRole("article");
  await question.getByText("Changes to the shop need a person.").waitFor();
  await question.getByText("How it is computed now").waitFor();
  await question.getByText("default/shop#change-with-a-person").waitFor();
  assert.match(await question.locator("pre").innerText(), /\\u\{202e\}/, "what would deceive the eye is spelt out");
  assert.equal(ran.length, before, "nothing runs while it waits");
  await shot("approval-alone", question);
  await question.getByRole("button", { name: "Deny" }).click();
  await question.getByText("Say why it is denied").waitFor();
  await shot("approval-light");
  await page.emulateMedia({ colorScheme: "dark" });
  await shot("approval-dark");
  await question.getByLabel("Reason").fill("looked at it");
  await question.getByRole("button", { name: "Approve" }).click();
  assert.match(await waits, /change_order: done/);
  assert.equal(ran.length, before + 1);
  await page.getByText("Nothing waits for you").waitFor();
  await page.getByText("looked at it").waitFor();
  await shot("approved-dark");
  step("an approval is approved with a reason, and the call goes through once");

  const denied = call("change_order", { order: 18 });
  await page.getByRole("article").getByLabel("Reason").fill("not this one");
  await page.getByRole("button", { name: "Deny" }).click();
  assert.match(await denied, /approval_denied/);
  assert.equal(ran.length, before + 1);
  await page.getByText("not this one").waitFor();
  step("another is denied, and does not run");
}

async function others() {
  await open("Agents");
  await page.getByRole("img", { name: /^Trust from/ }).waitFor();
  await page.getByText("What moved it").waitFor();
  await shot("agents-dark");
  await page.emulateMedia({ colorScheme: "light" });
  await shot("agents-light");
  await open("Policies");
  await page.getByRole("cell", { name: "never-drop" }).waitFor();
  await page.getByLabel("Server").fill("shop");
  await page.getByLabel("Tool").fill("drop_table");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.getByText("What would allow it").waitFor();
  await shot("policies");
  await open("Status");
  await page.getByText("Checked in this browser").waitFor();
  await call("read_orders", {});
  await page.reload();
  await page.getByText("nothing of those was changed or taken away").waitFor();
  await shot("status");
  step("agents, policies and status show live data, and the log continues the one seen before");
}

async function readers() {
  const waits = call("change_order", { order: 19 });
  const reader = await browse({ colorScheme: "dark", viewport: { width: 390, height: 844 } });
  await reader.goto(link("--read-only"));
  await reader.getByText("read-only").waitFor();
  await reader.locator('[data-result="deny"]').first().waitFor();
  await shot("narrow-stream", reader);
  await reader.getByRole("link", { name: /Approvals/ }).click();
  await reader.getByText("This session only reads").waitFor();
  assert.equal(await reader.getByRole("button", { name: "Approve" }).count(), 0);
  await shot("narrow-approval", reader);
  for (const [title, name] of [["Agents", "narrow-agents"], ["Status", "narrow-status"]]) {
    await reader.getByRole("link", { name: title }).click();
    await reader.getByRole("heading", { name: title, exact: true }).waitFor();
    await reader.locator("table").first().waitFor();
    await shot(name, reader);
  }
  const overflow = await reader.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(overflow <= 0, `a narrow page is ${overflow} pixels too wide`);
  await reader.getByRole("button", { name: "Sign out" }).click();
  await reader.getByText("You have signed out").waitFor();
  await reader.context().close();
  await open("Approvals");
  await page.getByRole("article").getByLabel("Reason").fill("enough");
  await page.getByRole("button", { name: "Deny" }).click();
  await waits;
  step("a session that reads sees, and decides nothing; a narrow window holds it all");
}

/** A ledger of 100,000 decisions, made up: what is tried here is the page. */
async function many() {
  const MANY = 100_000;
  const crowd = await browse({ colorScheme: "dark" });
  await crowd.route("**/v1/entries?**", async (route) => {
    const asked = new URL(route.request().url()).searchParams;
    const after = Number(asked.get("after") ?? MANY);
    const count = Math.min(Number(asked.get("limit")), after);
    const entries = Array.from({ length: count }, (_, at) => {
      const index = after - 1 - at;
      const denied = index % 7 === 0;
      return {
        index,
        leaf_hash: `sha256:${"0".repeat(64)}`,
        entry: { kind: "decision", timestamp: new Date(1.79e12 + index * 1000).toISOString(), result: denied ? "deny" : "allow", action: { protocol: "mcp", server: "shop", tool: `tool_${index % 50}` }, agent_id: `spiffe://acme.example/ns/shop/sa/default/agent/a${index % 9}`, reason: denied ? "policy_denied" : "policy_allowed", risk: index % 1000, trust: 500, tier: "L1", detail: {} },
      };
    });
    await route.fulfill({ json: { entries, next: after > count ? after - count : null } });
  });
  await crowd.goto(link());
  await rows(crowd).first().waitFor();
  await crowd.getByRole("grid").focus();
  await until("all are read", async () => {
    await crowd.keyboard.press("End");
    return (await crowd.getByText("100,000 shown").count()) === 1;
  }, 120);
  const measured = await crowd.evaluate(async () => {
    const grid = document.querySelector('[role="grid"]');
    const frames = [];
    let most = 0;
    let last = performance.now();
    grid.scrollTop = 0;
    for (let count = 0; count < 240; count++) {
      // Some steps are as a wheel's, some are jumps across the whole list.
      grid.scrollTop = count % 40 === 0 ? Math.random() * grid.scrollHeight : grid.scrollTop + 240;
      await new Promise(requestAnimationFrame);
      const now = performance.now();
      frames.push(now - last);
      last = now;
      most = Math.max(most, document.querySelectorAll('.all [role="row"]').length);
    }
    frames.sort((one, other) => one - other);
    return { p50: frames[120], p95: frames[228], most, bytes: performance.memory?.usedJSHeapSize };
  });
  assert.ok(measured.most < 120, `${measured.most} rows are in the page at once`);
  await shot("many", crowd);
  await crowd.context().close();
  step(`100,000 rows: a frame takes ${measured.p50.toFixed(1)} ms (p50), ${measured.p95.toFixed(1)} ms (p95); at most ${measured.most} rows in the page; ${(measured.bytes / 1e6).toFixed(0)} MB of heap`);
}

async function away(daemon) {
  await machine.end(daemon);
  await page.getByText("daemon away").waitFor();
  await page.getByText("The daemon does not answer").waitFor();
  await shot("away");
  step("a daemon that is away is said to be");
}

async function main() {
  upstream = await serve();
  writeFileSync(machine.at("config/all.yaml"), CONFIG(upstream.address().port));
  const daemon = await machine.daemon();
  address = (await until("the upstream listens", async () => (await machine.control("/v1/status")).upstreams[0])).address;
  const printed = await until("the link is printed", () => /console {4}(http:\S+)/.exec(daemon.said)?.[1]);
  await (await machine.browse()).close();
  page = await browse();
  await strangers(printed);
  await stream(printed);
  await entry();
  await approvals();
  await others();
  await readers();
  await many();
  await away(daemon);
  assert.deepEqual(complaints, [], "the browser complains of nothing");
}

try {
  await main();
} catch (error) {
  if (page) {
    await shot("failure").catch(() => {});
    console.error((await page.locator("body").innerText().catch(() => "")).slice(0, 3000));
  }
  console.error(complaints);
  throw error;
} finally {
  upstream?.closeAllConnections();
  upstream?.close();
  await machine.clean();
}
step("done");
