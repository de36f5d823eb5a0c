// The trust in an agent over time, as its decisions recorded it, with the entries that moved it.

import type { Stored } from "./api.ts";

/** A change of trust between two decisions. */
export interface Move {
  from: number;
  to: number;
  /** The decision that was the first to know. */
  at: number;
  timestamp: string;
  /** What was folded in between. */
  by: { index: number; kind: string; result: string }[];
}

export interface History {
  points: { index: number; trust: number; timestamp: string }[];
  /** The newest first. */
  moves: Move[];
}

/** What trust is folded from. */
const EVIDENCE = new Set(["outcome", "decision", "trust_adjusted"]);

/** The history that an agent's entries tell; `entries` in any order. */
export function history(entries: readonly Stored[]): History {
  const sorted = [...entries].sort((one, other) => one.index - other.index);
  const points: History["points"] = [];
  const moves: Move[] = [];
  let between: Stored[] = [];
  for (const stored of sorted) {
    const { trust, trust_as_of: asOf, timestamp, kind } = stored.entry;
    if (kind === "decision" && trust !== undefined) {
      const before = points.at(-1);
      // It knows what was folded before it, and nothing later.
      const known = between.filter((one) => asOf === undefined || one.index < asOf);
      if (before && before.trust !== trust) {
        const by = known.map((one) => ({ index: one.index, kind: one.entry.kind, result: one.entry.result }));
        moves.push({ from: before.trust, to: trust, at: stored.index, timestamp, by });
        between = between.filter((one) => !known.includes(one));
      } else if (!before) between = [];
      points.push({ index: stored.index, trust, timestamp });
    }
    if (EVIDENCE.has(kind)) between.push(stored);
  }
  return { points, moves: moves.reverse() };
}

/** A step line over a field of these measures. */
export function line(points: History["points"], width: number, height: number): string {
  const [first, last] = [points[0]?.index ?? 0, points.at(-1)?.index ?? 0];
  const x = (index: number): string => (last === first ? 0 : ((index - first) / (last - first)) * width).toFixed(1);
  const y = (trust: number): string => (height - (trust / 1000) * height).toFixed(1);
  const [start, ...rest] = points;
  if (!start) return "";
  const steps = rest.map((point) => `H${x(point.index)}V${y(point.trust)}`).join("");
  return `M0 ${y(start.trust)}${steps}H${width}`;
}
