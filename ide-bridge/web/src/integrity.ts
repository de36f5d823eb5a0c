// Whether the log is the one that this browser has seen before, only longer. The last checkpoint that held is kept beyond the session: a log
// that was rolled back between two visits is then noticed. It holds no entry and no secret.

import type { Api } from "./api.ts";
import { checkGrowth, hex, readCheckpoint, type Bytes } from "./proof.ts";

export interface Seen {
  size: number;
  root: string;
  at: string;
}

export interface Integrity {
  size: number;
  root: string;
  /** The checkpoint that it was compared with; undefined at the first visit. */
  before: Seen | undefined;
}

const bytes = (text: string): Bytes => Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

/** A hash as the daemon's JSON has it. */
const digest = (text: string): Bytes => bytes(text.replace(/^sha256:/, ""));

export type Shelf = Pick<Storage, "getItem" | "setItem">;

/** Checks the newest checkpoint's signature, and that it continues the one that was seen last. */
export async function verify(api: Pick<Api, "checkpoint" | "growth">, verifierKey: string, shelf: Shelf = localStorage): Promise<Integrity> {
  const checkpoint = await readCheckpoint(await api.checkpoint(), verifierKey);
  const name = `aegis-seen ${verifierKey}`;
  const kept = shelf.getItem(name);
  const before = kept ? (JSON.parse(kept) as Seen) : undefined;
  if (before) {
    const grown = checkpoint.size > before.size;
    const { proof } = grown ? await api.growth(before.size, checkpoint.size) : { proof: [] };
    await checkGrowth({ size: before.size, root: bytes(before.root) }, checkpoint, proof.map(digest));
  }
  const root = hex(checkpoint.root);
  shelf.setItem(name, JSON.stringify({ size: checkpoint.size, root, at: new Date().toISOString() } satisfies Seen));
  return { size: checkpoint.size, root, before };
}
