// Checks here, in the browser, that an entry is in the log of a key: a tlog-proof of C2SP, a checkpoint's signed note, and RFC 9162's inclusion
// and consistency. Hashes and signatures are the browser's own (Web Cryptography). Only what all of it proves is called proven.

/** What a proof shows. */
export interface Proven {
  index: number;
  /** How many entries the signed checkpoint covers. */
  size: number;
  origin: string;
  /** How many hashes lead from the entry to the checkpoint's root. */
  steps: number;
  leaf: string;
  root: string;
}

/** A checkpoint whose signature holds. */
export interface Checkpoint {
  origin: string;
  size: number;
  root: Bytes;
}

/** Why it shows nothing. */
export class Unproven extends Error {}

/** This browser cannot tell. */
export class Unsupported extends Error {}

export type Bytes = Uint8Array<ArrayBuffer>;

const encoder = new TextEncoder();

function joined(parts: readonly Bytes[]): Bytes {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function subtle(): SubtleCrypto {
  // Only pages from https or from loopback have it.
  const crypto = globalThis.crypto.subtle as SubtleCrypto | undefined;
  if (!crypto) throw new Unsupported("this browser lends no cryptography to this page; open it by 127.0.0.1 or localhost");
  return crypto;
}

async function sha256(...parts: readonly Bytes[]): Promise<Bytes> {
  return new Uint8Array(await subtle().digest("SHA-256", joined(parts)));
}

const node = (left: Bytes, right: Bytes): Promise<Bytes> => sha256(Uint8Array.of(1), left, right);

/** The hash of an entry's canonical bytes as a leaf. */
export const leafHash = (body: string): Promise<Bytes> => sha256(Uint8Array.of(0), encoder.encode(body));

export const same = (left: Bytes, right: Bytes): boolean => left.length === right.length && left.every((byte, at) => byte === right[at]);

export const hex = (bytes: Bytes): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

function base64(text: string): Bytes | undefined {
  try {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    return btoa(String.fromCharCode(...bytes)) === text ? bytes : undefined;
  } catch {
    return undefined;
  }
}

function digest(text: string): Bytes {
  const bytes = base64(text);
  if (bytes?.length !== 32) throw new Unproven("the proof holds something that is no hash");
  return bytes;
}

/** Checks `proof` for the entry `body` at `index` against the log's verifier key. */
export async function check(body: string, index: number, proof: string, verifierKey: string): Promise<Proven> {
  const split = proof.indexOf("\n\n");
  if (split < 0) throw new Unproven("the proof has no checkpoint");
  const [magic, place, ...path] = proof.slice(0, split).split("\n");
  if (magic !== "c2sp.org/tlog-proof@v1") throw new Unproven("it is not a proof of a known form");
  if (place !== `index ${index}`) throw new Unproven("the proof is for another entry");
  const { origin, size, root } = await readCheckpoint(proof.slice(split + 2), verifierKey);
  const leaf = await leafHash(body);
  const computed = await rootOf(leaf, index, size, path.map(digest));
  if (!same(computed, root)) throw new Unproven("the entry is not what the checkpoint covers");
  return { index, size, origin, steps: path.length, leaf: hex(leaf), root: hex(root) };
}

/** Reads a checkpoint, if the key has signed it. */
export async function readCheckpoint(note: string, verifierKey: string): Promise<Checkpoint> {
  const split = note.indexOf("\n\n");
  if (split < 0) throw new Unproven("the checkpoint is not signed");
  const signed = note.slice(0, split + 1);
  const [origin, sizeText, rootText] = signed.split("\n");
  const named = /^(.+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)$/.exec(verifierKey);
  const key = base64(named?.[3] ?? "");
  if (!named || key?.length !== 33 || key[0] !== 1) throw new Unproven("the log's verifier key is not an Ed25519 key");
  const name = named[1] ?? "";
  const id = (await sha256(encoder.encode(`${name}\n`), key)).slice(0, 4);
  if (hex(id) !== named[2] || origin !== name) throw new Unproven("the checkpoint is another log's");
  if (!(await isSigned(signed, note.slice(split + 2), name, id, key))) throw new Unproven("the checkpoint's signature is not the log's");
  if (!sizeText || !/^[1-9][0-9]{0,14}$/.test(sizeText)) throw new Unproven("the checkpoint covers nothing");
  return { origin, size: Number(sizeText), root: digest(rootText ?? "") };
}

async function isSigned(signed: string, signatures: string, name: string, id: Bytes, key: Bytes): Promise<boolean> {
  let publicKey: CryptoKey;
  try {
    publicKey = await subtle().importKey("raw", key.slice(1), { name: "Ed25519" }, false, ["verify"]);
  } catch (error) {
    if (error instanceof Unsupported) throw error;
    throw new Unsupported("this browser cannot check Ed25519 signatures; a newer one can, and so can `aegis audit check-proof`");
  }
  const prefix = `\u2014 ${name} `;
  for (const line of signatures.split("\n").filter((one) => one.startsWith(prefix))) {
    const signature = base64(line.slice(prefix.length));
    if (!signature || !same(signature.slice(0, 4), id)) continue;
    if (await subtle().verify({ name: "Ed25519" }, publicKey, signature.slice(4), encoder.encode(signed))) return true;
  }
  return false;
}

const half = (n: number): number => Math.floor(n / 2);

/** The root that a leaf and its path lead to (RFC 9162, 2.1.3.2). */
async function rootOf(leaf: Bytes, index: number, size: number, path: readonly Bytes[]): Promise<Bytes> {
  if (index >= size) throw new Unproven("the checkpoint does not cover the entry yet");
  let [at, last, hash] = [index, size - 1, leaf];
  for (const sibling of path) {
    if (last === 0) throw new Unproven("the proof is too long");
    if (at % 2 === 1 || at === last) {
      hash = await node(sibling, hash);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      hash = await node(hash, sibling);
    }
    [at, last] = [half(at), half(last)];
  }
  if (last !== 0) throw new Unproven("the proof is too short");
  return hash;
}

/** Fails unless the log of `next` is the log of `before` with entries added (RFC 9162, 2.1.4.2). */
export async function checkGrowth(before: { size: number; root: Bytes }, next: { size: number; root: Bytes }, path: readonly Bytes[]): Promise<void> {
  if (next.size < before.size) throw new Unproven("the log is shorter than it was");
  if (next.size === before.size) {
    if (!same(before.root, next.root)) throw new Unproven("the log holds other entries than before");
    return;
  }
  let [at, last] = [before.size - 1, next.size - 1];
  while (at % 2 === 1) [at, last] = [half(at), half(last)];
  const rest = [...path];
  // Where the old tree is a whole subtree of the new one, its root is the first hash.
  const first = at === 0 ? before.root : rest.shift();
  if (!first) throw new Unproven("the proof is too short");
  let [old, now] = [first, first];
  for (const hash of rest) {
    if (last === 0) throw new Unproven("the proof is too long");
    if (at % 2 === 1 || at === last) {
      old = await node(hash, old);
      now = await node(hash, now);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      now = await node(now, hash);
    }
    [at, last] = [half(at), half(last)];
  }
  if (last !== 0 || !same(old, before.root) || !same(now, next.root)) throw new Unproven("the log holds other entries than before");
}
