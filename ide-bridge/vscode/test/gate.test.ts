// The gate: whatever happens, nothing that was not allowed stays by itself, and no text is lost.

import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, test } from "node:test";

import type { Verdict } from "../src/daemon/answers.ts";
import { UNANSWERED } from "../src/daemon/client.ts";
import { firstDifference, Gate, type Mode } from "../src/gate/gate.ts";
import { gitDirectory, gitOperation } from "../src/gate/git.ts";
import { nameOf, Shelf } from "../src/gate/shelf.ts";

let folder = "";

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), "aegis-gate-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true });
});

/** A gate whose daemon refuses texts with `BAD`, waits with `WAIT`, and is away with `AWAY`. */
class Bench {
  mode: Mode = "enforce";
  git: string | undefined;
  full = false;
  approved = false;
  now = 0;
  asked: string[] = [];
  previewed: string[] = [];
  reported: string[] = [];
  toldAfter: string[] = [];
  shelf = new Shelf(path.join(folder, "refused"));
  gate = new Gate({
    mode: () => this.mode,
    ask: (_path, text) => {
      this.asked.push(text);
      return Promise.resolve(this.#verdict(text));
    },
    preview: (_path, text) => {
      this.previewed.push(text);
      const verdict = { ...this.#verdict(text), decision: undefined };
      return Promise.resolve(verdict.reason === UNANSWERED ? undefined : verdict);
    },
    report: (decision, result) => this.reported.push(`${decision} ${result}`),
    keep: (kept) => {
      if (this.full) throw new Error("no space left on device");
      return this.shelf.keep(kept);
    },
    git: () => this.git,
    now: () => new Date(this.now),
  });

  #verdict(text: string): Verdict {
    const base = { allowed: false, verdict: "deny", reason: "policy_denied", message: "No.", decision: undefined, approval: undefined, index: 1 };
    if (text.includes("AWAY")) return { ...base, reason: UNANSWERED };
    if (text.includes("WAIT") && !this.approved) return { ...base, verdict: "require_approval", reason: "approval_by_policy", approval: "a1" };
    if (text.includes("BAD")) return base;
    return { ...base, allowed: true, verdict: "allow", reason: "policy_allowed", decision: `d${String(this.asked.length)}` };
  }

  /** A save as the editor does it: `lost` if it does not wait for the gate, `format` what changes the text afterwards. Returns what stands. */
  async save(text: string, { lost = false, format = (one: string): string => one } = {}): Promise<string | undefined> {
    const before = await this.gate.before(FILE, text);
    let disk: string | undefined = text;
    if (!lost && before.kind === "refused" && before.refusal.stands === undefined && before.to !== undefined) disk = before.to;
    disk = format(disk);
    const after = await this.gate.after(FILE, disk);
    if (after.kind === "stands") this.toldAfter.push(disk);
    return after.kind === "refused" ? after.to : disk;
  }

  kept(): string[] {
    return this.shelf.list().map((one) => one.text).sort();
  }
}

const FILE = "/w/a.txt";

test("what is allowed is saved, and concluded once", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("new"), "new");
  assert.deepEqual([bench.asked, bench.reported], [["new"], ["d1 success"]]);
  assert.equal(bench.gate.allowed(FILE), "new");
  assert.equal(await bench.save("new"), "new");
  assert.equal(bench.asked.length, 1, "what stands already is not asked about");
});

test("what is refused is undone, and kept, and asked about once", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("BAD"), "old");
  assert.deepEqual([bench.asked, bench.reported, bench.kept()], [["BAD"], [], ["BAD"]]);
});

test("a save that does not wait is undone afterwards", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("BAD", { lost: true }), "old");
  assert.deepEqual([bench.asked.length, bench.kept()], [1, ["BAD"]]);
});

test("what a formatter writes afterwards is judged as it stands", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("fine", { format: () => "BAD" }), "old");
  assert.deepEqual(bench.reported, ["d1 failure"], "what was allowed was not written");
  assert.deepEqual(bench.kept(), ["BAD"]);
  assert.equal(await bench.save("fine", { format: () => "fine, formatted" }), "fine, formatted");
  assert.deepEqual(bench.reported.slice(1), ["d3 failure", "d4 success"]);
});

test("a file that was not there goes again", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, undefined);
  assert.equal(await bench.save("BAD"), undefined);
  assert.deepEqual(bench.kept(), ["BAD"]);
});

test("without a verdict nothing is allowed in enforce, and nobody is bothered in assist", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("AWAY"), "old");
  assert.deepEqual(bench.kept(), ["AWAY"]);
  bench.mode = "assist";
  assert.equal(await bench.save("AWAY again"), "AWAY again");
  assert.deepEqual(bench.kept(), ["AWAY"]);
});

test("assist tells and undoes nothing; observe asks nothing", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  bench.mode = "assist";
  const before = await bench.gate.before(FILE, "BAD");
  assert.ok(before.kind === "refused" && before.refusal.stands !== undefined);
  assert.equal(await bench.save("BAD"), "BAD");
  const asked = bench.asked.length;
  bench.mode = "observe";
  assert.equal(await bench.save("BAD too"), "BAD too");
  assert.equal(bench.asked.length, asked);
});

test("nothing is undone while git is at work", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  bench.git = "a merge";
  const before = await bench.gate.before(FILE, "BAD");
  assert.ok(before.kind === "refused" && before.refusal.stands === "a merge is under way");
  assert.equal(await bench.save("BAD"), "BAD");
  assert.deepEqual(bench.toldAfter, [], "it is told once");
  assert.equal(await bench.save("fine", { format: () => "BAD, formatted" }), "BAD, formatted");
  assert.deepEqual(bench.toldAfter, ["BAD, formatted"], "and in any case");
});

test("what cannot be kept is not taken away", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  bench.full = true;
  const before = await bench.gate.before(FILE, "BAD");
  assert.ok(before.kind === "refused" && /cannot be kept elsewhere \(no space/.test(before.refusal.stands ?? ""));
  assert.equal(await bench.save("BAD"), "BAD");
});

test("where it is not known how a file stood, nothing is undone", async () => {
  const bench = new Bench();
  assert.equal(await bench.save("BAD"), "BAD");
  assert.deepEqual(bench.kept(), ["BAD"]);
});

test("a refused text does not become an allowed one by being read again", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  await bench.gate.before(FILE, "BAD");
  bench.gate.onDisk(FILE, "BAD");
  assert.equal(bench.gate.allowed(FILE), "old");
  bench.gate.onDisk(FILE, "by others");
  assert.equal(bench.gate.allowed(FILE), "by others");
});

test("after an approval the same text is asked about anew, at once", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  assert.equal(await bench.save("WAIT"), "old");
  bench.approved = true;
  assert.equal(await bench.save("WAIT"), "WAIT");
  assert.equal(bench.asked.length, 2);
  bench.approved = false;
  assert.ok(await bench.gate.pause(FILE, "WAIT too"));
  bench.approved = true;
  assert.equal(await bench.save("WAIT too"), "WAIT too", "also where it was previewed while typing");
});

test("while typing nothing is decided, and what was said then counts for no save", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "old");
  const shown = await bench.gate.pause(FILE, "BAD");
  assert.deepEqual([shown?.verdict.message, shown?.stands, shown?.kept], ["No.", "it is not saved yet", undefined]);
  assert.equal(await bench.gate.pause(FILE, "new"), undefined);
  assert.equal(await bench.gate.pause(FILE, "AWAY"), undefined, "nothing is shown where nobody says");
  assert.deepEqual([bench.previewed, bench.asked, bench.reported, bench.kept()], [["BAD", "new", "AWAY"], [], [], []]);
  assert.equal(await bench.save("BAD"), "old");
  assert.equal(await bench.save("new"), "new");
  assert.deepEqual([bench.asked, bench.reported], [["BAD", "new"], ["d2 success"]]);
  bench.mode = "observe";
  assert.equal(await bench.gate.pause(FILE, "BAD"), undefined);
  assert.equal(bench.previewed.length, 3);
});

test("no text is lost, whatever is saved in whatever order", async () => {
  const bench = new Bench();
  bench.gate.onDisk(FILE, "start");
  // A small generator: the same run each time.
  let seed = 7;
  const next = (below: number): number => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor((seed / 2_147_483_648) * below);
  };
  const words = ["fine", "BAD", "WAIT", "AWAY"];
  for (let round = 0; round < 400; round++) {
    bench.git = next(5) === 0 ? "a rebase" : undefined;
    bench.full = next(5) === 0;
    bench.mode = (["observe", "assist", "enforce", "enforce"] as const)[next(4)]!;
    bench.now += next(9_000);
    const text = `${words[next(4)]!} ${String(round)}`;
    const stands = await bench.save(text, { lost: next(3) === 0 });
    if (stands !== text) assert.ok(bench.kept().includes(text), `round ${String(round)}: ${text} is kept`);
    if (bench.mode === "enforce" && !bench.git && !bench.full && !text.startsWith("fine")) assert.notEqual(stands, text, `round ${String(round)}`);
  }
});

test("the shelf keeps any text exactly, for its owner alone, until it is thrown away", () => {
  const shelf = new Shelf(path.join(folder, "shelf"));
  const odd = "\u0000 \ud800 \r\n \u{1f600} é";
  const kept = shelf.keep({ path: FILE, text: odd, at: "2026-01-01T00:00:00Z", reason: "r", message: "m", approval: undefined, index: 3 });
  shelf.keep({ path: FILE, text: odd, at: "2026-01-02T00:00:00Z", reason: "r", message: "m", approval: undefined, index: 4 });
  assert.deepEqual(shelf.list().map((one) => [one.id, one.text, one.index]), [[kept.id, odd, 4]], "the same text is kept once");
  assert.equal(kept.id, nameOf(FILE, odd));
  assert.notEqual(nameOf(FILE, "\ud800"), nameOf(FILE, "\ud801"), "texts that are no Unicode are told apart");
  const mode = execFileSync("stat", ["-c", "%a", path.join(folder, "shelf"), path.join(folder, "shelf", `${kept.id}.json`)], { encoding: "utf8" });
  assert.deepEqual(mode.trim().split("\n"), ["700", "600"]);
  assert.equal(shelf.get("../../etc/passwd"), undefined);
  writeFileSync(path.join(folder, "shelf", "0".repeat(24) + ".json"), "{");
  assert.equal(shelf.list().length, 1, "what is damaged hides nothing else");
  shelf.discard(kept.id);
  assert.deepEqual(readdirSync(path.join(folder, "shelf")).filter((name) => name.startsWith(kept.id)), []);
});

test("git at work is seen, in a work tree, a linked one, and outside of any", () => {
  const main = path.join(folder, "main");
  const git = (...args: string[]): void => { execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@acme.example", "-C", main, ...args], { stdio: "pipe" }); };
  mkdirSync(main);
  git("init", "-q");
  git("commit", "-q", "--allow-empty", "-m", "x");
  git("worktree", "add", "-q", "../linked");
  const inside = path.join(main, "a", "b.txt");
  const linked = path.join(folder, "linked", "c.txt");
  assert.equal(gitOperation(inside), undefined);
  for (const [name, said] of [["MERGE_HEAD", "a merge"], ["rebase-merge", "a rebase"], ["index.lock", "a git command"], ["CHERRY_PICK_HEAD", "a cherry-pick"]] as const) {
    for (const file of [inside, linked]) {
      const sign = path.join(gitDirectory(file)!, name);
      writeFileSync(sign, "");
      assert.equal(gitOperation(file), said);
      assert.equal(gitOperation(file === inside ? linked : inside), undefined, "the other work tree is at rest");
      rmSync(sign);
    }
  }
  assert.equal(gitOperation(path.join(folder, "elsewhere.txt")), undefined);
  writeFileSync(path.join(folder, ".git"), "nonsense");
  chmodSync(path.join(folder, ".git"), 0);
  assert.equal(gitOperation(path.join(folder, "elsewhere.txt")), undefined);
});

test("a refusal is shown at the first line that differs, and always at a line that is there", () => {
  assert.equal(firstDifference("a\nb\nc", "a\nX\nc"), 1);
  assert.equal(firstDifference("a", "a\nb\nc"), 0);
  assert.equal(firstDifference("", "x"), 0);
  assert.equal(firstDifference("a\nb\n", "a"), 0);
});
