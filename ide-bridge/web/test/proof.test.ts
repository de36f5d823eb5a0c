// Proofs that the Rust side made (`fixture.json`; it checks them too, by `a_proof_that_the_console_is_tested_with_is_ours`), and proofs of a log
// that is computed here by RFC 9162's own recursion.

import { strict as assert } from "node:assert";
import { createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { verify } from "../src/integrity.ts";
import { type Bytes, check, checkGrowth, hex, readCheckpoint, Unproven } from "../src/proof.ts";

interface Fixture {
  key: string;
  entries: { index: number; body: string; proof: string }[];
  growth: { from: { size: number; root: string }; to: { size: number; root: string }; proof: string[] };
}

const fixture = JSON.parse(readFileSync(new URL("fixture.json", import.meta.url), "utf8")) as Fixture;

const sha256 = (...parts: Uint8Array[]): Bytes => new Uint8Array(createHash("sha256").update(Buffer.concat(parts)).digest());
const node = (left: Uint8Array, right: Uint8Array): Bytes => sha256(Uint8Array.of(1), left, right);
const leaf = (body: string): Bytes => sha256(Uint8Array.of(0), Buffer.from(body));
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
const fromHex = (text: string): Bytes => new Uint8Array(Buffer.from(text, "hex"));

/** The largest power of two below `n`. */
function below(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

function root(leaves: Bytes[]): Bytes {
  if (leaves.length === 1) return leaves[0]!;
  const k = below(leaves.length);
  return node(root(leaves.slice(0, k)), root(leaves.slice(k)));
}

function path(index: number, leaves: Bytes[]): Bytes[] {
  if (leaves.length === 1) return [];
  const k = below(leaves.length);
  return index < k ? [...path(index, leaves.slice(0, k)), root(leaves.slice(k))] : [...path(index - k, leaves.slice(k)), root(leaves.slice(0, k))];
}

/** RFC 9162, 2.1.4.1. */
function growth(size: number, leaves: Bytes[], whole = true): Bytes[] {
  if (size === leaves.length) return whole ? [] : [root(leaves)];
  const k = below(leaves.length);
  return size <= k ? [...growth(size, leaves.slice(0, k), whole), root(leaves.slice(k))] : [...growth(size - k, leaves.slice(k), false), root(leaves.slice(0, k))];
}

const NAME = "acme.example/ledger";

class Signer {
  readonly #key: KeyObject;
  readonly #id: Bytes;
  readonly verifier: string;

  constructor(name = NAME) {
    const pair = generateKeyPairSync("ed25519");
    this.#key = pair.privateKey;
    const bytes = Buffer.concat([Buffer.of(1), pair.publicKey.export({ format: "der", type: "spki" }).subarray(-32)]);
    this.#id = sha256(Buffer.from(`${name}\n`), bytes).slice(0, 4);
    this.verifier = `${name}+${hex(this.#id)}+${bytes.toString("base64")}`;
  }

  checkpoint(bodies: string[]): string {
    const note = `${NAME}\n${String(bodies.length)}\n${base64(root(bodies.map(leaf)))}\n`;
    return `${note}\n\u2014 ${NAME} ${base64(Buffer.concat([this.#id, sign(null, Buffer.from(note), this.#key)]))}\n`;
  }

  proof(index: number, bodies: string[]): string {
    const hashes = path(index, bodies.map(leaf)).map((hash) => `${base64(hash)}\n`);
    return `c2sp.org/tlog-proof@v1\nindex ${String(index)}\n${hashes.join("")}\n${this.checkpoint(bodies)}`;
  }
}

const log = (size: number): string[] => Array.from({ length: size }, (_, index) => `{"sequence":${String(index)}}`);

test("proofs of the Rust side hold", async () => {
  assert.ok(fixture.entries.length > 3);
  for (const { index, body, proof } of fixture.entries) {
    const proven = await check(body, index, proof, fixture.key);
    assert.deepEqual([proven.index, proven.origin, proven.leaf], [index, fixture.key.split("+")[0], hex(leaf(body))]);
  }
});

test("proofs of the Rust side do not hold for what was altered", async () => {
  const { index, body, proof } = fixture.entries[1]!;
  const altered = body.replace(/"result":"\w+"/, '"result":"allow" ');
  assert.notEqual(altered, body);
  await assert.rejects(check(altered, index, proof, fixture.key), /not what the checkpoint covers/);
  await assert.rejects(check(body, index + 1, proof, fixture.key), /for another entry/);
  const lines = proof.split("\n");
  const signature = lines.findIndex((line) => line.startsWith("\u2014"));
  const forged = lines.with(signature, lines[signature]!.replace(/(.{8})=*$/, (tail) => (tail.startsWith("AAAA") ? "BBBB" : "AAAA") + tail.slice(4)));
  await assert.rejects(check(body, index, forged.join("\n"), fixture.key), /signature/);
  const other = new Signer(fixture.key.split("+")[0]).verifier;
  await assert.rejects(check(body, index, proof, other), /signature/);
});

test("the growth that the Rust side proves is one", async () => {
  const { from, to, proof } = fixture.growth;
  const digest = (text: string): Bytes => fromHex(text.replace("sha256:", ""));
  const ends = [{ size: from.size, root: digest(from.root) }, { size: to.size, root: digest(to.root) }] as const;
  await checkGrowth(...ends, proof.map(digest));
  await assert.rejects(checkGrowth({ size: from.size, root: digest(to.root) }, ends[1], proof.map(digest)), Unproven);
  await assert.rejects(checkGrowth(...ends, proof.slice(1).map(digest)), Unproven);
});

test("every entry of logs of every size is proven", async () => {
  const signer = new Signer();
  for (let size = 1; size <= 20; size++) {
    const bodies = log(size);
    for (let index = 0; index < size; index++) {
      const proven = await check(bodies[index]!, index, signer.proof(index, bodies), signer.verifier);
      assert.deepEqual([proven.index, proven.size, proven.origin], [index, size, NAME]);
    }
  }
});

test("anything else is not proven", async () => {
  const signer = new Signer();
  const bodies = log(11);
  const proof = signer.proof(5, bodies);
  const lines = proof.split("\n");
  const no = async (what: string, ...args: Parameters<typeof check>): Promise<void> => {
    await assert.rejects(check(...args), Unproven, what);
  };
  await no("another body", bodies[4]!, 5, proof, signer.verifier);
  await no("another index", bodies[5]!, 4, proof, signer.verifier);
  await no("another key", bodies[5]!, 5, proof, new Signer().verifier);
  await no("another log's key", bodies[5]!, 5, proof, new Signer("other.example/ledger").verifier);
  await no("no key", bodies[5]!, 5, proof, "");
  await no("another form", bodies[5]!, 5, proof.replace("@v1", "@v9"), signer.verifier);
  await no("no checkpoint", bodies[5]!, 5, lines.slice(0, 5).join("\n"), signer.verifier);
  await no("a hash too few", bodies[5]!, 5, lines.toSpliced(2, 1).join("\n"), signer.verifier);
  await no("a hash too many", bodies[5]!, 5, lines.toSpliced(2, 0, lines[2]!).join("\n"), signer.verifier);
  await no("hashes in another order", bodies[5]!, 5, lines.toSpliced(2, 2, lines[3]!, lines[2]!).join("\n"), signer.verifier);
  await no("another size", bodies[5]!, 5, proof.replace("\n11\n", "\n12\n"), signer.verifier);
  await no("no signature", bodies[5]!, 5, proof.slice(0, proof.indexOf("\u2014")), signer.verifier);
});

test("growth is told from every size to every size, and a changed past is not growth", async () => {
  for (let size = 1; size <= 17; size++) {
    const leaves = log(size).map(leaf);
    for (let old = 1; old <= size; old++) {
      const [before, next, proof] = [{ size: old, root: root(leaves.slice(0, old)) }, { size, root: root(leaves) }, growth(old, leaves)];
      await checkGrowth(before, next, proof);
      const other = [...leaves.slice(0, old - 1), leaf("another")];
      await assert.rejects(checkGrowth({ size: old, root: root(other) }, next, proof), Unproven);
      if (proof.length > 0) await assert.rejects(checkGrowth(before, next, proof.slice(0, -1)), Unproven);
      if (old < size) await assert.rejects(checkGrowth(next, before, proof), Unproven);
    }
  }
});

test("a log that was rolled back since the last visit is noticed", async () => {
  const signer = new Signer();
  const shelf = new Map<string, string>();
  const kept = { getItem: (name: string) => shelf.get(name) ?? null, setItem: (name: string, value: string) => void shelf.set(name, value) };
  const visit = (bodies: string[]): ReturnType<typeof verify> => {
    const proven = (from: number): string[] => growth(from, bodies.map(leaf)).map((hash) => `sha256:${hex(hash)}`);
    const api = { checkpoint: () => Promise.resolve(signer.checkpoint(bodies)), growth: (from: number) => Promise.resolve({ proof: proven(from) }) };
    return verify(api, signer.verifier, kept);
  };
  assert.equal((await visit(log(5))).before, undefined);
  assert.equal((await visit(log(9))).before?.size, 5);
  assert.equal((await visit(log(9))).before?.size, 9);
  await assert.rejects(visit(log(8)), /shorter/);
  await assert.rejects(visit([...log(8), "another"]), /other entries/);
  await assert.rejects(visit(["another", ...log(12)]), /other entries/);
  await assert.rejects(readCheckpoint(signer.checkpoint(log(3)), new Signer().verifier), /signature/);
});
