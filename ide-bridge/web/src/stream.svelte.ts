// The ledger, a page at a time: rows as they are scrolled to, and new ones as they are committed.

import type { Api, Entry, Stored } from "./api.ts";
import { about, layer } from "./words.ts";

/** How many entries are asked for at a time. */
const PAGE = 500;
/** How many pages are searched for a row before the search waits to be continued. */
const SEARCH = 20;

/** An entry as a row shows it. */
export interface Row {
  index: number;
  timestamp: string;
  kind: string;
  result: string;
  agent: string;
  about: string;
  layer: string;
  reason: string;
  tier: string;
  risk: number | undefined;
  trust: number | undefined;
}

export interface Filter {
  kind: string;
  agent: string;
  result: string;
  server: string;
  tool: string;
  layer: string;
  text: string;
}

export const everything = (): Filter => ({ kind: "decision", agent: "", result: "", server: "", tool: "", layer: "", text: "" });

/** An entry's row. */
export function row({ index, entry }: { index: number; entry: Entry }): Row {
  return {
    index,
    timestamp: entry.timestamp,
    kind: entry.kind,
    result: entry.result,
    agent: entry.agent_id ?? "",
    about: about(entry),
    layer: layer(entry),
    reason: entry.reason ?? "",
    tier: entry.tier ?? "",
    risk: entry.risk,
    trust: entry.trust,
  };
}

/** What of a filter the ledger is asked for; the layer is picked here. */
export function query(filter: Filter): Record<string, string> {
  return Object.fromEntries(Object.entries(filter).filter(([name, value]) => name !== "layer" && value !== ""));
}

/** The newest entries that a filter lets through, as far as they were read. */
export class Stream {
  rows = $state.raw<Row[]>([]);
  /** Whether there is nothing older. */
  whole = $state(false);
  reading = $state(false);
  /** How many entries were looked at. */
  searched = $state(0);
  problem = $state("");
  readonly #api: Pick<Api, "entries">;
  readonly #filter: Filter;
  #next: number | null | undefined;
  #top = -1;
  #renewing = false;
  #again = false;

  constructor(api: Pick<Api, "entries">, filter: Filter) {
    this.#api = api;
    this.#filter = filter;
  }

  #kept(entries: readonly Stored[]): Row[] {
    this.searched += entries.length;
    const rows = entries.map(row);
    return this.#filter.layer === "" ? rows : rows.filter((one) => one.layer === this.#filter.layer);
  }

  #page(more: Record<string, string>): ReturnType<Api["entries"]> {
    return this.#api.entries({ ...query(this.#filter), limit: String(PAGE), ...more });
  }

  /** Reads older entries until there is a row more, or enough was searched. */
  async more(): Promise<void> {
    if (this.reading || this.whole) return;
    this.reading = true;
    try {
      for (let pages = 0; pages < SEARCH && !this.whole; pages++) {
        const page = await this.#page(typeof this.#next === "number" ? { after: String(this.#next) } : {});
        this.#top = Math.max(this.#top, page.entries[0]?.index ?? -1);
        this.#next = page.next;
        this.whole = page.next === null;
        const rows = this.#kept(page.entries);
        if (rows.length > 0) {
          this.rows = [...this.rows, ...rows];
          break;
        }
      }
      this.problem = "";
    } finally {
      this.reading = false;
    }
  }

  /** Reads what has come since; how many rows were put at the top. */
  async renew(): Promise<number> {
    if (this.#next === undefined) return 0;
    // What comes while it reads is read after.
    this.#again = true;
    if (this.#renewing) return 0;
    this.#renewing = true;
    let added = 0;
    try {
      while (this.#again) {
        this.#again = false;
        added += await this.#newer();
      }
    } finally {
      this.#renewing = false;
    }
    return added;
  }

  async #newer(): Promise<number> {
    const fresh: Stored[] = [];
    let after: number | null = null;
    do {
      const page = await this.#page(after === null ? {} : { after: String(after) });
      const newer = page.entries.filter((one) => one.index > this.#top);
      fresh.push(...newer);
      after = newer.length === page.entries.length ? page.next : null;
    } while (after !== null);
    this.#top = fresh[0]?.index ?? this.#top;
    const rows = this.#kept(fresh);
    if (rows.length > 0) this.rows = [...rows, ...this.rows];
    return rows.length;
  }
}
