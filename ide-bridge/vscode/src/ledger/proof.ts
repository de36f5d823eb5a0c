// Checks that an entry is in the log of the daemon's key: a tlog-proof of C2SP, a checkpoint's signed note, and RFC 9162's inclusion. Only
// what all of it proves is called proven.

import { createHash, createPublicKey, verify } from "node:crypto";

/** What a proof shows. */
export interface Proven {
  index: number;
  /** How many entries the signed checkpoint covers. */
  size: number;
  origin: string;
}

/** Why it shows nothing. */
export class Unproven extends Error {}

/** The prefix of an Ed25519 key in SubjectPublicKeyInfo. */
const SPKI = Buffer.from("302a300506032b6570032100", "hex");

const sha256 = (...parts: readonly (Buffer | string)[]): Buffer => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};

/** The hash of an entry's canonical bytes as a leaf. */
export function leafHash(body: string): Buffer {
  return sha256(Buffer.of(0), body);
}

/** Checks `proof` for the entry `body` at `index` against the log's verifier key. */
export function check(body: string, index: number, proof: string, verifierKey: string): Proven {
  const split = proof.indexOf("\n\n");
  if (split < 0) throw new Unproven("the proof has no checkpoint");
  const [magic, place, ...path] = proof.slice(0, split).split("\n");
  if (magic !== "c2sp.org/tlog-proof@v1") throw new Unproven("it is not a proof of a known form");
  if (place !== `index ${String(index)}`) throw new Unproven("the proof is for another entry");
  const { origin, size, root } = readCheckpoint(proof.slice(split + 2), verifierKey);
  const computed = rootOf(leafHash(body), index, size, path.map(digest));
  if (!computed.equals(root)) throw new Unproven("the entry is not what the checkpoint covers");
  return { index, size, origin };
}

function digest(text: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  if (bytes.length !== 32 || bytes.toString("base64") !== text) throw new Unproven("the proof holds something that is no hash");
  return bytes;
}

interface Checkpoint {
  origin: string;
  size: number;
  root: Buffer;
}

function readCheckpoint(note: string, verifierKey: string): Checkpoint {
  const split = note.indexOf("\n\n");
  if (split < 0) throw new Unproven("the checkpoint is not signed");
  const signed = note.slice(0, split + 1);
  const [origin, sizeText, rootText] = signed.split("\n");
  const key = /^(.+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)$/.exec(verifierKey);
  const bytes = Buffer.from(key?.[3] ?? "", "base64");
  if (!key || bytes.length !== 33 || bytes[0] !== 1) throw new Unproven("the daemon's verifier key is not an Ed25519 key");
  const name = key[1] ?? "";
  const id = sha256(`${name}\n`, bytes).subarray(0, 4);
  if (id.toString("hex") !== key[2] || origin !== name) throw new Unproven("the checkpoint is another log's");
  const lines = note.slice(split + 2).split("\n");
  const publicKey = createPublicKey({ key: Buffer.concat([SPKI, bytes.subarray(1)]), format: "der", type: "spki" });
  const good = lines.some((line) => {
    const prefix = `\u2014 ${name} `;
    if (!line.startsWith(prefix)) return false;
    const signature = Buffer.from(line.slice(prefix.length), "base64");
    return signature.subarray(0, 4).equals(id) && verify(null, Buffer.from(signed), publicKey, signature.subarray(4));
  });
  if (!good) throw new Unproven("the checkpoint's signature is not the daemon's");
  if (!sizeText || !/^[1-9][0-9]{0,14}$/.test(sizeText)) throw new Unproven("the checkpoint covers nothing");
  return { origin, size: Number(sizeText), root: digest(rootText ?? "") };
}

/** The root that a leaf and its path lead to (RFC 9162, 2.1.3.2). */
function rootOf(leaf: Buffer, index: number, size: number, path: readonly Buffer[]): Buffer {
  if (index >= size) throw new Unproven("the checkpoint does not cover the entry yet");
  let [at, last, hash] = [index, size - 1, leaf];
  const half = (n: number): number => Math.floor(n / 2);
  for (const sibling of path) {
    if (last === 0) throw new Unproven("the proof is too long");
    if (at % 2 === 1 || at === last) {
      hash = sha256(Buffer.of(1), sibling, hash);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      hash = sha256(Buffer.of(1), hash, sibling);
    }
    [at, last] = [half(at), half(last)];
  }
  if (last !== 0) throw new Unproven("the proof is too short");
  return hash;
}
