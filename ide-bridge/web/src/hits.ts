// How often policies spoke, counted over decisions.

import type { Stored } from "./api.ts";

export interface Hits {
  /** `namespace/policy`, as the status names it. */
  policy: string;
  rule: string;
  allow: number;
  deny: number;
  require_approval: number;
  /** How many of them in audit mode, which binds nobody. */
  audited: number;
  /** The newest decision that it spoke in. */
  last: number;
  timestamp: string;
}

/** Counts what each rule said in these decisions. */
export function hits(entries: readonly Stored[]): Hits[] {
  const found = new Map<string, Hits>();
  for (const { index, entry } of entries) {
    for (const { name, effect, mode } of entry.policies ?? []) {
      const [policy = "", rule = ""] = name.split("#");
      const one = found.get(name) ?? { policy, rule, allow: 0, deny: 0, require_approval: 0, audited: 0, last: -1, timestamp: "" };
      if (effect === "allow" || effect === "deny" || effect === "require_approval") one[effect] += 1;
      if (mode === "audit") one.audited += 1;
      if (index > one.last) [one.last, one.timestamp] = [index, entry.timestamp];
      found.set(name, one);
    }
  }
  return [...found.values()].sort((one, other) => one.policy.localeCompare(other.policy) || one.rule.localeCompare(other.rule));
}
