// How things are said and named.

import type { Entry } from "./api.ts";

/** The layers of Aegis that decide, by the protocol of what they decide. */
export const LAYERS: Record<string, string> = {
  ide: "editor",
  kernel: "code",
  mcp: "tools",
  a2a: "agents",
  http: "network",
  tls: "network",
};

export const LAYER_NAMES = ["editor", "code", "tools", "agents", "network"];

/** The layer that an entry is of; empty for what is of none. */
export const layer = (entry: Entry): string => LAYERS[entry.action?.protocol ?? ""] ?? "";

/** The last part of a SPIFFE ID: the agent's own name. */
export const shortName = (id: string): string => id.slice(id.lastIndexOf("/") + 1) || id;

const RESULTS: Record<string, string> = {
  allow: "allowed",
  deny: "denied",
  require_approval: "asks a person",
  success: "succeeded",
  failure: "failed",
  unknown: "unknown",
  recorded: "recorded",
  consumed: "approved and used",
};

export const resultWord = (result: string): string => RESULTS[result] ?? result;

/** The tone of a result: of colours and signs. */
export function tone(result: string): "good" | "bad" | "wait" | "plain" {
  if (result === "allow" || result === "success" || result === "approved" || result === "consumed") return "good";
  if (result === "deny" || result === "failure" || result === "denied" || result === "expired") return "bad";
  if (result === "require_approval" || result === "pending") return "wait";
  return "plain";
}

/** What confirmed who answered. */
export const factorWord = (factor: string): string => ({ none: "no second factor", account: "by another account than agents'", totp: "one-time code" })[factor] ?? factor;

/** A sign beside the colour, for those who do not see it. */
export const sign = (result: string): string => ({ good: "✓", bad: "✕", wait: "?", plain: "·" })[tone(result)];

export const kindWord = (kind: string): string => kind.replaceAll("_", " ");

/** What an entry is about, in a line. */
export function about(entry: Entry): string {
  const { server, tool, method } = entry.action ?? {};
  const detail = entry.detail?.["policy"] ?? entry.detail?.["order"] ?? entry.detail?.["component"];
  const parts = [server, tool ?? method].filter((part) => part);
  return parts.length > 0 ? parts.join(" · ") : typeof detail === "string" ? detail : "";
}

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

export const clock = (timestamp: string): string => time.format(new Date(timestamp));
export const moment = (timestamp: string): string => day.format(new Date(timestamp));

/** How long until then, in words; empty when it is over. */
export function left(until: string, now: number): string {
  const seconds = Math.round((Date.parse(until) - now) / 1000);
  if (seconds <= 0) return "";
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

/** Characters that could make a text look like another are shown as what they are. */
export function plain(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (char) => (char === "\n" || char === "\t" ? char : `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`));
}

/** A value as people read it. */
export const shown = (value: unknown): string => plain(typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** What went wrong, in a sentence. */
export const failure = (error: unknown): string => (error instanceof Error ? error.message : String(error));
