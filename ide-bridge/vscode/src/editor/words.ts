// How things are said. Nothing here knows the editor, and nothing decides.

import { type Approval, type Caller, type Entry, maybe, rulesAgainst, shortName, type Status, type Trust } from "../daemon/answers.ts";
import type { State } from "../daemon/connection.ts";
import type { Mode, Refusal } from "../gate/gate.ts";

/** The status bar's item. */
export interface Bar {
  text: string;
  tooltip: string;
  level: "fine" | "warning" | "error";
}

/** What this editor is to the daemon, as far as it has been told. */
export interface Self {
  agent: string;
  tier: string | undefined;
  /** What the kernel API says of the caller; undefined where it does not. */
  told: Caller | undefined;
}

/** The one line that must never be better than the truth. */
export function bar(state: State, mode: Mode, self: Self | undefined, trust: readonly Trust[], pending: number): Bar {
  const unchecked = { observe: "", assist: ": saves unchecked", enforce: ": saves refused" }[mode];
  switch (state.kind) {
    case "looking":
      return { text: "$(sync~spin) Aegis", tooltip: "Looking for the daemon", level: "fine" };
    case "away":
      return { text: `$(debug-disconnect) Aegis away${unchecked}`, tooltip: state.message, level: mode === "observe" ? "warning" : "error" };
    case "foreign":
      return { text: `$(error) Aegis: unknown daemon${unchecked}`, tooltip: state.message, level: "error" };
    case "old":
      return { text: `$(error) Aegis: old daemon${unchecked}`, tooltip: state.message, level: "error" };
    case "up":
      return upBar(state.status, state.unjudged, mode, self, trust, pending);
  }
}

function upBar(status: Status, unjudged: string, mode: Mode, self: Self | undefined, trust: readonly Trust[], pending: number): Bar {
  const own = trust.find((one) => one.agent === self?.agent);
  const told = self?.told;
  const score = told?.trust ?? own?.score;
  const parts = [mode, score === undefined ? "" : `trust ${String(score)}`, self?.tier ?? ""].filter(Boolean);
  const lines = [`Aegis ${status.version}, ${String(status.ledger.size)} entries in the ledger, ${status.audit}`];
  const standing = told?.standing ?? own?.standing;
  if (self) lines.push(`This editor is ${self.agent}${standing === undefined ? "" : ` (${standing})`}`);
  const blind = unjudged !== "" && mode !== "observe";
  if (unjudged) lines.push(`The kernel API does not answer this editor: ${unjudged}`);
  const isAdvisory = status.advisory.length > 0 || told?.advisory === true;
  if (isAdvisory) lines.push(`Advisory only: ${status.advisory.join("; ") || "the agent's own user could undo what is decided"}`);
  if (status.problems.length) lines.push(`Problems: ${status.problems.join("; ")}`);
  const stopped = own?.quarantined === true || told?.stopped === true;
  if (stopped) lines.push("This editor is stopped: quarantined, suspended or revoked");
  const glass = status.agents.find((one) => one.id === self?.agent)?.glassBrokenUntil;
  if (glass !== undefined) lines.push(`The policies are lifted for this editor until ${glass}`);
  const amiss = blind || stopped || glass !== undefined;
  const icon = amiss ? "$(warning)" : "$(shield)";
  const waiting = pending ? ` $(bell) ${String(pending)}` : "";
  const advisory = isAdvisory ? " · Advisory" : "";
  const what = blind ? `Aegis: editor not judged${mode === "enforce" ? ", saves refused" : ""}` : `Aegis ${parts.join(" · ")}${glass === undefined ? "" : " · glass broken"}${advisory}`;
  return { text: `${icon} ${what}${waiting}`, tooltip: lines.join("\n"), level: amiss ? "warning" : "fine" };
}

/** What an approval is about: what would be done, and to what. */
export function subject(approval: Approval): { verb: string; target: string } {
  return { verb: approval.tool ?? approval.method, target: approval.resource ?? argument(approval.arguments, "path") ?? approval.server };
}

/** A member of arguments, if it is a text. */
export function argument(of: unknown, name: string): string | undefined {
  return typeof of === "object" && of !== null ? maybe(of as Record<string, unknown>, name) : undefined;
}

/** Everything that is known of an approval: who decides shall not have to look elsewhere. */
export function approvalText(approval: Approval): string {
  const { verb, target } = subject(approval);
  const votes = approval.votes.map((vote) => `  ${vote.approver}: ${vote.approve ? "yes" : "no"} (${vote.factor})${vote.comment ? `, ${vote.comment}` : ""}`);
  return [
    `Approval ${approval.id}: ${approval.state}`,
    "",
    `Who        ${approval.agent}`,
    `For        ${approval.sponsor ?? "nobody"}`,
    `What       ${verb} ${target} (server ${approval.server})`,
    `Why asked  ${approval.message} (${approval.reason})`,
    `Risk       ${String(approval.risk)} of 1000, tier ${approval.tier}`,
    `Trust      ${String(approval.trust)} of 1000`,
    `Needs      ${String(approval.quorum)} ${approval.quorum === 1 ? "person" : "people"}${approval.mfa ? ", with a one-time code" : ""}`,
    `Asked      ${approval.requestedAt}`,
    `Expires    ${approval.expiresAt}, which denies`,
    `Bound to   ${approval.digest}`,
    ...(votes.length ? ["Answers", ...votes] : []),
    "",
    "Arguments",
    JSON.stringify(approval.arguments, null, 2),
    "",
  ].join("\n");
}

/** How long something is still open. */
export function left(until: string, now: Date): string {
  const seconds = Math.floor((Date.parse(until) - now.getTime()) / 1000);
  if (!Number.isFinite(seconds) || seconds <= 0) return "expired";
  return seconds < 120 ? `${String(seconds)} s left` : `${String(Math.floor(seconds / 60))} min left`;
}

/** An entry in one line. */
export function entryLine({ entry }: Entry): { what: string; verb: string; target: string; result: string; who: string; why: string } {
  const action = typeof entry["action"] === "object" && entry["action"] !== null ? (entry["action"] as Record<string, unknown>) : {};
  const target = maybe(entry, "resource") ?? maybe(action, "tool") ?? maybe(action, "server") ?? "";
  const method = maybe(action, "method") ?? maybe(entry, "kind") ?? "";
  const rules = rulesAgainst(entry);
  return {
    what: [method, target].filter(Boolean).join(" "),
    verb: method,
    target,
    result: maybe(entry, "result") ?? "",
    who: shortName(maybe(entry, "agent_id") ?? ""),
    why: [maybe(entry, "reason") ?? "", rules.join(", ")].filter(Boolean).join(": "),
  };
}

/** What stands at the refused place. */
export function refusalText(refusal: Refusal, rules: readonly string[]): string {
  const { verdict, stands } = refusal;
  const rule = rules.length ? ` (${rules.join(", ")})` : "";
  const way = verdict.approval ? ` Approval ${verdict.approval} waits for a person.` : "";
  const end = stands === undefined ? "The last allowed text is back; yours is kept." : `The text stands, because ${stands}.`;
  return `${verdict.message}${rule}${way} ${end}`;
}

/** `/status` in the chat. */
export function statusText(state: State, mode: Mode): string {
  if (state.kind === "looking") return "I am still looking for the daemon.";
  if (state.kind !== "up") return `**There is no daemon that I can use.** ${code(state.message)}\n\nNothing is governed from here${mode === "enforce" ? ", and saves are refused" : ""}.`;
  const { status, unjudged } = state;
  const lines = [
    `Aegis ${code(status.version)}, mode **${mode}**, ${String(status.agents.length)} agents, ${String(status.policies.length)} policies, ${String(status.ledger.size)} ledger entries.`,
    ...(unjudged ? [`- The kernel API does not answer this editor: ${code(unjudged)}`] : []),
    ...status.policies.filter((policy) => policy.state !== "ready").map((policy) => `- Policy ${code(policy.name)} is ${code(policy.state)}: ${code(policy.message)}`),
    ...status.problems.map((problem) => `- Problem: ${code(problem)}`),
    ...status.advisory.map((why) => `- Advisory only: ${code(why)}`),
    ...status.notCovered.map((what) => `- Not covered: ${code(what)}`),
  ];
  return lines.join("\n");
}

/** `/trust` in the chat. */
export function trustText(trust: readonly Trust[]): string {
  if (!trust.length) return "No agent is known yet.";
  const rows = trust.map((one) => `| ${code(shortName(one.agent))} | ${String(one.score)} | ${one.standing} | ${one.stage} | ${one.quarantined ? "yes" : "no"} |`);
  return ["| agent | trust | standing | stage | stopped |", "|---|---:|---|---|---|", ...rows].join("\n");
}

/** `/audit` in the chat. */
export function auditText(entries: readonly Entry[]): string {
  if (!entries.length) return "Nothing is recorded that fits.";
  const rows = entries.map((entry) => {
    const line = entryLine(entry);
    return `| ${String(entry.index)} | ${line.result} | ${code(line.who)} | ${code(line.what)} | ${code(line.why)} |`;
  });
  return ["| entry | result | agent | action | why |", "|---:|---|---|---|---|", ...rows].join("\n");
}

/** Words of others in Markdown: shown, never interpreted. */
export function code(text: string): string {
  const plain = text.replace(/[`|\r\n]/g, " ").trim();
  return plain ? `\`${plain}\`` : "";
}

/** What an MCP client is given for an upstream: an address, or the wrapper's arguments. */
export function serverOf(address: string): { url: string } | { args: string[] } | undefined {
  if (/^http:\/\/(127\.0\.0\.1|\[::1\]|localhost):\d+\//.test(address)) return { url: address };
  const wrapped = /^aegis wrap --server ([A-Za-z0-9._-]+)$/.exec(address);
  return wrapped?.[1] === undefined ? undefined : { args: ["wrap", "--server", wrapped[1]] };
}
