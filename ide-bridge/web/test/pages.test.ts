// What the pages show, without a page.

import { strict as assert } from "node:assert";
import { test } from "node:test";

import type { Entry, Stored } from "../src/api.ts";
import { history, line } from "../src/history.ts";
import { hits } from "../src/hits.ts";
import { about, layer, left, plain, shortName, shown, tone } from "../src/words.ts";

const stored = (index: number, entry: Partial<Entry>): Stored => ({
  index,
  leaf_hash: "",
  entry: { kind: "decision", timestamp: "2026-01-01T00:00:00Z", result: "allow", action: {}, detail: {}, ...entry },
});

test("trust moves by what was folded between two decisions", () => {
  const told = history([
    stored(9, { trust: 520, trust_as_of: 9 }),
    stored(0, { trust: 500, trust_as_of: 0 }),
    stored(1, { kind: "outcome", result: "success" }),
    stored(5, { trust: 510, trust_as_of: 2 }),
    stored(6, { kind: "outcome", result: "failure" }),
    stored(7, { kind: "approval_vote", result: "recorded" }),
  ]);
  assert.deepEqual(told.points.map((one) => one.trust), [500, 510, 520]);
  assert.deepEqual(told.moves.map((one) => [one.from, one.to, one.by.map((by) => by.index)]), [[510, 520, [5, 6]], [500, 510, [0, 1]]]);
  assert.equal(line(told.points, 90, 100), "M0 50.0H50.0V49.0H90.0V48.0H90");
  assert.equal(line([], 90, 100), "");
});

test("a rule's hits are counted by what it said", () => {
  const digest = "sha256:0";
  const [rule] = hits([
    stored(1, { policies: [{ name: "default/shop#read", digest, effect: "allow", mode: "enforce" }] }),
    stored(4, { policies: [{ name: "default/shop#read", digest, effect: "deny", mode: "audit" }] }),
    stored(2, {}),
  ]);
  assert.deepEqual([rule?.policy, rule?.rule, rule?.allow, rule?.deny, rule?.audited, rule?.last], ["default/shop", "read", 1, 1, 1, 4]);
});

test("nothing that deceives the eye is shown as it is", () => {
  assert.equal(plain("a\u202eb\u200bc\u0000\n"), "a\\u{202e}b\\u{200b}c\\u{0}\n");
  assert.equal(shown({ a: 1 }), '{\n  "a": 1\n}');
  assert.equal(shown("x\u2066"), "x\\u{2066}");
});

test("entries are named by their layer and what they are about", () => {
  const entry = stored(0, { action: { protocol: "ide", server: "editor", method: "file.write" } }).entry;
  assert.deepEqual([layer(entry), about(entry)], ["editor", "editor · file.write"]);
  assert.equal(about(stored(0, { kind: "policy_loaded", detail: { policy: "default/shop" } }).entry), "default/shop");
  assert.equal(shortName("spiffe://acme.example/ns/a/sa/b/agent/buyer"), "buyer");
  assert.deepEqual(["allow", "deny", "require_approval", "recorded"].map(tone), ["good", "bad", "wait", "plain"]);
  const now = Date.parse("2026-01-01T00:00:00Z");
  assert.deepEqual(["2026-01-01T00:00:30Z", "2026-01-01T00:10:00Z", "2026-01-01T05:00:00Z", "2025-12-31T00:00:00Z"].map((until) => left(until, now)), ["30 s", "10 min", "5 h", ""]);
});
