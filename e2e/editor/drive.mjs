// A developer's session in a real editor: something forbidden is saved, something that needs a person, something while the daemon is away.
// After each step the disk, the shelf, the ledger and the screen are looked at.

import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";

import { Machine, until } from "./machine.mjs";

const machine = new Machine();
const SHOTS = process.env.AEGIS_SCREENSHOTS;
const KEY = "AKIAIOSFODNN7EXAMPLE";
const work = machine.at("work");
const file = (name) => path.join(work, name);
const text = (name) => readFileSync(file(name), "utf8");

let page;
let shots = 0;
const started = Date.now();
const step = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${what}`);

async function shot(name) {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: path.join(SHOTS, `${String(++shots).padStart(2, "0")}-${name}.png`) });
}

const bar = () => page.locator('.statusbar-item[id="aegis.aegis-vscode.aegis.status"]');
const barSays = (what) => until(`the status bar says ${what}`, async () => (await bar().innerText()).includes(what));
const toast = (what) => page.locator(".notification-list-item", { hasText: what }).first();
/** A notice; where the editor has put it aside already, its list is opened. */
async function notice(what) {
  try {
    await toast(what).waitFor({ timeout: 5_000 });
  } catch {
    await command("Notifications: Show Notifications");
    await toast(what).waitFor();
  }
  return toast(what);
}

/** Follows a notice's button; a notice may be put aside while the hand is on its way. */
async function follow(what, button) {
  await until(`the button ${button} is pressed`, async () => {
    const shown = await notice(what);
    await shown.locator(".monaco-button", { hasText: button }).click({ timeout: 3_000 });
    return true;
  });
}
const press = (keys) => page.keyboard.press(keys);

/** Opens the editor's input line by a key; one that is just closing eats it. */
async function inputBy(keys) {
  const widget = page.locator(".quick-input-widget");
  await widget.waitFor({ state: "hidden" });
  await press(keys);
  const input = widget.locator("input.input").first();
  try {
    await input.waitFor({ timeout: 3_000 });
  } catch {
    await press(keys);
    await input.waitFor();
  }
  return input;
}

async function command(title) {
  const input = await inputBy("F1");
  await input.fill(`>${title}`);
  // Not merely one that holds these words.
  const exactly = new RegExp(`^${title.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`);
  await page.locator(".quick-input-list .monaco-list-row .label-name", { hasText: exactly }).first().click();
}

async function open(name) {
  const input = await inputBy("Control+P");
  await input.fill(name);
  await page.locator(".quick-input-list .monaco-list-row", { hasText: path.basename(name) }).first().waitFor();
  await press("Enter");
  await page.locator(`.tab.active[data-resource-name="${path.basename(name)}"]`).first().waitFor();
  await focusEditor();
}

async function focusEditor() {
  await page.locator(".editor-group-container.active .monaco-editor .view-lines").first().click();
}

/** Replaces everything in the editor. */
async function write(content) {
  await press("Control+A");
  await page.keyboard.insertText(content);
  await page.locator(".tab.active.dirty").waitFor();
}

/** As `write`, and saves. */
async function writeAndSave(content) {
  await write(content);
  await press("Control+S");
}

/** Texts on the shelf. */
function kept() {
  const folder = machine.at("user/User/globalStorage/aegis.aegis-vscode/refused");
  if (!existsSync(folder)) return [];
  return readdirSync(folder).filter((name) => name.endsWith(".json")).map((name) => JSON.parse(readFileSync(path.join(folder, name), "utf8")));
}

/** Entries of the ledger, the newest first. */
async function entries(query) {
  const page = await machine.control(`/v1/entries?${new URLSearchParams(query)}`);
  return page.entries.map((one) => one.entry);
}

async function clearToasts() {
  await command("Notifications: Clear All Notifications");
  await until("the notices are gone", async () => (await page.locator(".notification-list-item").count()) === 0);
}

async function setMode(mode) {
  await command("Aegis: Set Mode");
  await page.locator(".quick-input-list .monaco-list-row", { hasText: mode }).first().click();
  // While the daemon is away the status bar says what becomes of saves instead.
  const away = { observe: "Aegis away", assist: "Aegis away: saves unchecked", enforce: "Aegis away: saves refused" }[mode];
  await until(`the mode is ${mode}`, async () => {
    const said = (await bar().innerText()).trim();
    return said.includes(mode) || said.endsWith(away);
  });
}

function prepare() {
  mkdirSync(file("deploy"), { recursive: true });
  writeFileSync(file("settings.py"), 'REGION = "eu-central-1"\nRETRIES = 3\n');
  writeFileSync(file("deploy/shop.yaml"), "replicas: 2\n");
  writeFileSync(file("notes.md"), "# Notes\n");
  execFileSync("git", ["init", "-q", work]);
  // A repository must not be able to switch the gate off.
  mkdirSync(file(".vscode"));
  writeFileSync(file(".vscode/settings.json"), '{ "aegis.mode": "observe", "aegis.socket": "/nonexistent/control.sock" }\n');
  const settings = {
    "workbench.startupEditor": "none",
    "workbench.colorTheme": "Default Dark Modern",
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "editor.minimap.enabled": false,
    "files.autoSave": "off",
  };
  writeFileSync(machine.at("user/User/settings.json"), JSON.stringify(settings));
  writeFileSync(machine.at("user/Machine/settings.json"), JSON.stringify({ "aegis.mode": "enforce", "aegis.socket": machine.at("state/control.sock"), "aegis.program": process.env.AEGIS_BIN }));
}

async function forbidden() {
  await page.locator('.activitybar a.action-label[aria-label="Aegis"]').click();
  await open("settings.py");
  const before = text("settings.py");
  const bad = `REGION = "eu-central-1"\nRETRIES = 5\nKEY = "${KEY}"\n`;
  await write(bad);
  await page.locator(".squiggly-error").first().waitFor();
  assert.deepEqual(await entries({ kind: "decision" }), [], "while typing nothing is decided");
  step("what would be refused is marked while typing, and nothing is recorded");
  await press("Control+S");
  await notice("did not save settings.py");
  await until("the saved file is clean", async () => (await page.locator(".tab.active.dirty").count()) === 0);
  assert.equal(text("settings.py"), before, "the disk holds the last allowed text");
  assert.equal(kept().find((one) => one.path === file("settings.py"))?.text, bad, "the refused text is kept");
  await page.locator(".squiggly-error").first().waitFor();
  await command("Problems: Focus on Problems View");
  await page.locator(".markers-panel", { hasText: "default/editor#no-keys" }).waitFor();
  const denied = await entries({ kind: "decision", result: "deny" });
  assert.equal(denied.length, 1, "one question for one save");
  assert.deepEqual([denied[0].resource, denied[0].arguments.mode], [file("settings.py"), "enforce"]);
  assert.ok(!JSON.stringify(await entries({ limit: "1000" })).includes(KEY), "the key stands nowhere in the ledger");
  await shot("refused");
  step("a forbidden save is refused and undone");

  await press("Control+.");
  const fixes = page.locator(".monaco-menu");
  for (const fix of ["Compare with what was refused", "Put the refused text back", "Show the decision's record"]) await fixes.getByText(fix).waitFor();
  await shot("fixes");
  await press("Escape");
  step("the mark offers ways forward");

  await follow("did not save settings.py", "Compare");
  await page.locator(".monaco-diff-editor").first().waitFor();
  await until("the diff shows the refused line", async () => (await page.locator(".monaco-diff-editor").first().innerText()).replaceAll("\u00a0", " ").includes(KEY));
  await shot("compare");
  step("the refused text is shown beside the file");

  await press("Control+W");
  await open("settings.py");
  await writeAndSave('REGION = "eu-west-1"\nRETRIES = 3\n');
  await until("an allowed text is saved", () => text("settings.py").includes("eu-west-1"));
  await until("the write is concluded", async () => (await entries({ kind: "outcome" })).some((one) => one.result === "success"));
  await until("the mark is gone", async () => (await page.locator(".squiggly-error").count()) === 0);
  step("an allowed save goes through, and the mark goes");
}

async function approval() {
  await clearToasts();
  await open("deploy/shop.yaml");
  await writeAndSave("replicas: 9\n");
  await notice("did not save shop.yaml");
  assert.equal(text("deploy/shop.yaml"), "replicas: 2\n", "nothing changes while it waits");
  await follow("did not save shop.yaml", "Open Approvals");
  const row = page.locator(".pane", { hasText: "Approvals" }).locator(".monaco-list-row", { hasText: "shop.yaml" }).first();
  await row.waitFor();
  await row.click();
  await page.locator(".monaco-diff-editor").first().waitFor();
  await clearToasts();
  await shot("approval");
  step("the change waits in the queue, and is shown as a diff");

  await row.hover();
  await row.locator('.action-label[aria-label^="Approve"]').click();
  const input = page.locator(".quick-input-widget input.input").first();
  await input.waitFor();
  await input.fill("looked at it");
  await shot("approve");
  await press("Enter");
  await notice("your change of shop.yaml was approved");
  const [approved] = await machine.control("/v1/approvals");
  assert.deepEqual([approved.state, approved.votes[0].comment], ["approved", "looked at it"]);
  await shot("approved");
  await follow("your change of shop.yaml was approved", "Save It Now");
  await until("the approved text is on disk", () => text("deploy/shop.yaml") === "replicas: 9\n");
  step("it is approved from the queue, and saved once");

  await open("deploy/shop.yaml");
  await writeAndSave("replicas: 10\n");
  await notice("did not save shop.yaml");
  assert.equal(text("deploy/shop.yaml"), "replicas: 9\n", "an approval is for one text");
  const again = page.locator(".pane", { hasText: "Approvals" }).locator('.monaco-list-row:has(.action-label[aria-label^="Deny"])').first();
  await again.hover();
  await again.locator('.action-label[aria-label^="Deny"]').click();
  const reason = page.locator(".quick-input-widget input.input").first();
  await reason.waitFor();
  await press("Enter");
  await page.locator(".quick-input-widget", { hasText: "Say why" }).waitFor();
  await reason.fill("too many");
  await press("Enter");
  await until("it is denied, with the reason", async () => (await machine.control("/v1/approvals")).some((one) => one.state === "denied" && one.votes[0].comment === "too many"));
  step("another text needs another approval, and a denial a reason");
}

async function newFile() {
  await command("File: New Untitled Text File");
  await page.locator(".tab.active", { hasText: "Untitled" }).first().waitFor();
  const bad = `TOKEN=${KEY}\n`;
  await page.keyboard.insertText(bad);
  await press("Control+S");
  const input = page.locator(".quick-input-widget input.input").first();
  await input.waitFor();
  // The editor proposes a name first, and would overwrite what comes sooner.
  await until("a name is proposed", async () => (await input.inputValue()).endsWith(KEY) || (await input.inputValue()).endsWith(".txt"));
  await input.fill(file("token.env"));
  await page.locator(".quick-input-widget .monaco-button", { hasText: "OK" }).first().waitFor();
  await page.locator(".quick-input-widget .monaco-button", { hasText: "OK" }).first().click();
  await notice("did not save token.env");
  await until("the refused text is not on disk", () => !existsSync(file("token.env")) || text("token.env") === "");
  assert.equal(kept().find((one) => one.path === file("token.env"))?.text, bad, "and it is kept");
  step(`a new file is refused; ${existsSync(file("token.env")) ? "an empty one stays" : "none stays"}`);
}

async function audit() {
  await clearToasts();
  await command("View: Toggle Panel Visibility");
  await command("Aegis: Open Audit");
  const frame = page.frameLocator("iframe.webview").frameLocator("iframe#active-frame");
  const denied = frame.locator('tr[data-result="deny"]').first();
  await denied.waitFor();
  await denied.click();
  await frame.locator("#proof", { hasText: "Proven here" }).waitFor();
  await shot("audit");
  step("the ledger is shown, and a proof is checked");
  await press("Control+W");
}

async function underGit() {
  await open("notes.md");
  writeFileSync(file(".git/MERGE_HEAD"), `${"0".repeat(40)}\n`);
  const bad = `# Notes\n\n${KEY}\n`;
  await writeAndSave(bad);
  await notice("would not save notes.md");
  await until("the save is done, and nothing is undone under git's hands", () => text("notes.md") === bad);
  await page.locator(".squiggly-error").first().waitFor();
  rmSync(file(".git/MERGE_HEAD"));
  await writeAndSave("# Notes\n\nClean\n");
  await until("the clean text is saved", () => text("notes.md").includes("Clean"));
  step("during a merge nothing is undone, and what is refused is shown");
}

async function away(daemon) {
  await clearToasts();
  await machine.end(daemon);
  await barSays("away");
  const before = text("notes.md");
  await writeAndSave("# Notes\n\nWritten without a daemon\n");
  await notice("did not save notes.md");
  await until("the file is put back", async () => (await page.locator(".tab.active.dirty").count()) === 0);
  assert.equal(text("notes.md"), before, "without a verdict nothing is allowed");
  assert.ok(kept().some((one) => one.path === file("notes.md") && one.text.includes("without a daemon")), "and nothing is lost");
  await shot("away");
  step("with the daemon away a save is refused and kept, and the status bar says why");

  await setMode("observe");
  await clearToasts();
  await writeAndSave("# Notes\n\nObserved\n");
  await until("a save in observe stands", () => text("notes.md").includes("Observed"));
  step("in observe it stands");
  await setMode("enforce");
  const again = await machine.daemon();
  await barSays("enforce");
  step("the daemon is back, and the status bar says so");
  return again;
}

async function main() {
  prepare();
  machine.install();
  step("the package is installed");
  const daemon = await machine.daemon();
  const address = await machine.serve(work);
  const context = await machine.browse();
  page = await context.newPage();
  await page.goto(`${address}/?folder=${work}`);
  await page.locator(".monaco-workbench").waitFor();
  await barSays("enforce");
  await barSays("trust 500");
  step("the status bar shows the live daemon");
  await forbidden();
  await approval();
  await newFile();
  await audit();
  await underGit();
  await away(daemon);
  const log = execFileSync("sh", ["-c", `cat "$(find "${machine.at("user/logs")}" -name '*Aegis*.log' | head -n 1)"`], { encoding: "utf8" });
  console.log(`activation: ${/active after (\S+ ms)/.exec(log)?.[1]}`);
}

try {
  await main();
} catch (error) {
  if (page) await shot("failure").catch(() => {});
  console.error(execFileSync("sh", ["-c", `find "${machine.at("user/logs")}" -name '*Aegis*.log' -exec tail -n 40 {} +`], { encoding: "utf8" }));
  throw error;
} finally {
  await machine.clean();
}
step("done");
