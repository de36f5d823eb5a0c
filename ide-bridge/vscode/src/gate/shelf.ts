// Refused texts, kept on disk before anything is undone. They are taken away by their owner alone. One text of one file is kept once.

import { createHash } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import path from "node:path";

/** A refused text. */
export interface Kept {
  id: string;
  path: string;
  text: string;
  /** ISO 8601. */
  at: string;
  reason: string;
  message: string;
  approval: string | undefined;
  index: number | undefined;
}

/** Names a text of a file. */
export function nameOf(file: string, text: string): string {
  return createHash("sha256").update(file).update("\0").update(text, "utf16le").digest("hex").slice(0, 24);
}

/** The shelf. */
export class Shelf {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Keeps a text; when this returns, it is on disk. */
  keep(kept: Omit<Kept, "id">): Kept {
    const all = { ...kept, id: nameOf(kept.path, kept.text) };
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const fresh = path.join(this.#folder, `${all.id}.${String(process.pid)}.new`);
    const file = openSync(fresh, "w", 0o600);
    try {
      // The text's own code units: what is no Unicode is kept too.
      writeAll(file, Buffer.from(JSON.stringify(all)));
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(fresh, this.#file(all.id));
    const folder = openSync(this.#folder, "r");
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
    return all;
  }

  /** A kept text; undefined if there is none of this name, or it cannot be read. */
  get(id: string): Kept | undefined {
    try {
      const value = JSON.parse(readFileSync(this.#file(id), "utf8")) as Kept;
      return value.id === id && typeof value.text === "string" && typeof value.path === "string" ? value : undefined;
    } catch {
      return undefined;
    }
  }

  /** All of them, the newest first. */
  list(): Kept[] {
    let names: string[];
    try {
      names = readdirSync(this.#folder);
    } catch {
      return [];
    }
    const kept = names.flatMap((name) => (name.endsWith(".json") ? (this.get(name.slice(0, -5)) ?? []) : []));
    return kept.sort((a, b) => b.at.localeCompare(a.at));
  }

  /** Throws one away, as its owner asks. */
  discard(id: string): void {
    rmSync(this.#file(id), { force: true });
  }

  #file(id: string): string {
    if (!/^[0-9a-f]{24}$/.test(id)) throw new Error("no refused text has such a name");
    return path.join(this.#folder, `${id}.json`);
  }
}

function writeAll(file: number, bytes: Buffer): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
}
