// Proofs against a log that is computed here by RFC 9162's own recursion.

import { strict as assert } from "node:assert";
import { createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { test } from "node:test";

import { check, leafHash, Unproven } from "../src/ledger/proof.ts";

const sha256 = (...parts: Buffer[]): Buffer => createHash("sha256").update(Buffer.concat(parts)).digest();
const node = (left: Buffer, right: Buffer): Buffer => sha256(Buffer.of(1), left, right);

/** The largest power of two below `n`. */
function below(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

function root(leaves: Buffer[]): Buffer {
  if (leaves.length === 1) return leaves[0]!;
  const k = below(leaves.length);
  return node(root(leaves.slice(0, k)), root(leaves.slice(k)));
}

function path(index: number, leaves: Buffer[]): Buffer[] {
  if (leaves.length === 1) return [];
  const k = below(leaves.length);
  return index < k ? [...path(index, leaves.slice(0, k)), root(leaves.slice(k))] : [...path(index - k, leaves.slice(k)), root(leaves.slice(0, k))];
}

const NAME = "acme.example/ledger";

class Signer {
  readonly #key: KeyObject;
  readonly #id: Buffer;
  readonly verifier: string;

  constructor(name = NAME) {
    const pair = generateKeyPairSync("ed25519");
    this.#key = pair.privateKey;
    const bytes = Buffer.concat([Buffer.of(1), pair.publicKey.export({ format: "der", type: "spki" }).subarray(-32)]);
    this.#id = sha256(Buffer.from(`${name}\n`), bytes).subarray(0, 4);
    this.verifier = `${name}+${this.#id.toString("hex")}+${bytes.toString("base64")}`;
  }

  proof(index: number, bodies: string[]): string {
    const leaves = bodies.map(leafHash);
    const note = `${NAME}\n${String(bodies.length)}\n${root(leaves).toString("base64")}\n`;
    const signature = Buffer.concat([this.#id, sign(null, Buffer.from(note), this.#key)]).toString("base64");
    const hashes = path(index, leaves).map((hash) => `${hash.toString("base64")}\n`);
    return `c2sp.org/tlog-proof@v1\nindex ${String(index)}\n${hashes.join("")}\n${note}\n\u2014 ${NAME} ${signature}\n`;
  }
}

const log = (size: number): string[] => Array.from({ length: size }, (_, index) => `{"sequence":${String(index)}}`);

test("every entry of logs of every size is proven", () => {
  const signer = new Signer();
  for (let size = 1; size <= 20; size++) {
    const bodies = log(size);
    for (let index = 0; index < size; index++) {
      assert.deepEqual(check(bodies[index]!, index, signer.proof(index, bodies), signer.verifier), { index, size, origin: NAME });
    }
  }
});

test("anything else is not proven", () => {
  const signer = new Signer();
  const bodies = log(11);
  const proof = signer.proof(5, bodies);
  const lines = proof.split("\n");
  const no = (what: string, ...args: Parameters<typeof check>): void => { assert.throws(() => check(...args), Unproven, what); };
  no("another body", bodies[4]!, 5, proof, signer.verifier);
  no("another index", bodies[5]!, 4, proof, signer.verifier);
  no("another key", bodies[5]!, 5, proof, new Signer().verifier);
  no("another log's key", bodies[5]!, 5, proof, new Signer("other.example/ledger").verifier);
  no("no key", bodies[5]!, 5, proof, "");
  no("another form", bodies[5]!, 5, proof.replace("@v1", "@v9"), signer.verifier);
  no("no checkpoint", bodies[5]!, 5, lines.slice(0, 5).join("\n"), signer.verifier);
  no("a hash too few", bodies[5]!, 5, lines.toSpliced(2, 1).join("\n"), signer.verifier);
  no("a hash too many", bodies[5]!, 5, lines.toSpliced(2, 0, lines[2]!).join("\n"), signer.verifier);
  no("hashes in another order", bodies[5]!, 5, lines.toSpliced(2, 2, lines[3]!, lines[2]!).join("\n"), signer.verifier);
  no("another size", bodies[5]!, 5, proof.replace("\n11\n", "\n12\n"), signer.verifier);
  no("no signature", bodies[5]!, 5, proof.slice(0, proof.indexOf("\u2014")), signer.verifier);
});
