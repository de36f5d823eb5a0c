// What the daemon answers, as far as it is shown or obeyed here. What has another shape is not the daemon that this extension knows, and
// nothing of it is used.

/** An answer that is none. */
export class Nonsense extends Error {}

/** The daemon's status. */
export interface Status {
  version: string;
  pid: number;
  config: string;
  audit: string;
  advisory: string[];
  notCovered: string[];
  problems: string[];
  warnings: string[];
  upstreams: Upstream[];
  policies: { name: string; state: string; message: string }[];
  agents: Agent[];
  ledger: { size: number; origin: string; verifierKey: string };
}

/** An MCP server behind the daemon. */
export interface Upstream {
  name: string;
  address: string;
  target: string;
  quarantined: number;
}

/** A registered agent. */
export interface Agent {
  id: string;
  sponsor: string;
  trust: number;
  quarantined: boolean;
  revoked: boolean;
  /** Until when a person has lifted the policies for it. */
  glassBrokenUntil: string | undefined;
}

/** The trust in an agent. */
export interface Trust {
  agent: string;
  score: number;
  standing: string;
  stage: string;
  belowCritical: number;
  quarantined: boolean;
}

/** What waits, or waited, for a human. */
export interface Approval {
  id: string;
  state: string;
  agent: string;
  sponsor: string | undefined;
  server: string;
  method: string;
  tool: string | undefined;
  /** What it acts on, such as a file's path; undefined where the daemon does not tell. */
  resource: string | undefined;
  arguments: unknown;
  digest: string;
  message: string;
  reason: string;
  risk: number;
  trust: number;
  tier: string;
  quorum: number;
  mfa: boolean;
  votes: { approver: string; approve: boolean; factor: string; comment: string | undefined }[];
  requestedAt: string;
  expiresAt: string;
}

/** A tool with its pin. */
export interface Tool {
  server: string;
  tool: string;
  seen: string;
  quarantined: boolean;
  warnings: string[];
}

/** An entry of the ledger. */
export interface Entry {
  index: number;
  leafHash: string;
  entry: Record<string, unknown>;
}

/** What the kernel API says of a question. Nothing but `allowed` allows. */
export interface Verdict {
  allowed: boolean;
  verdict: string;
  reason: string;
  message: string;
  decision: string | undefined;
  approval: string | undefined;
  index: number | undefined;
}

/** Who this editor is to the daemon. */
export interface Caller {
  agent: string;
  trust: number;
  standing: string;
  stopped: boolean;
  /** The lowest tier that an action of it has now. */
  tier: string;
  /** Whether the agent's own user could undo what is decided. */
  advisory: boolean;
}

type Fields = Record<string, unknown>;

/** The members of an object. */
export function fields(value: unknown, what: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Nonsense(`${what} is not an object`);
  return value as Fields;
}

function list<T>(value: unknown, what: string, each: (one: unknown) => T): T[] {
  if (!Array.isArray(value)) throw new Nonsense(`${what} is not a list`);
  return value.map(each);
}

function text(of: Fields, name: string): string {
  const value = of[name];
  if (typeof value !== "string") throw new Nonsense(`\`${name}\` is not a text`);
  return value;
}

function number(of: Fields, name: string): number {
  const value = of[name];
  if (typeof value !== "number" || !Number.isFinite(value)) throw new Nonsense(`\`${name}\` is not a number`);
  return value;
}

function flag(of: Fields, name: string): boolean {
  const value = of[name];
  if (typeof value !== "boolean") throw new Nonsense(`\`${name}\` is not true or false`);
  return value;
}

function texts(of: Fields, name: string): string[] {
  return list(of[name] ?? [], `\`${name}\``, (one) => {
    if (typeof one !== "string") throw new Nonsense(`\`${name}\` holds something else than texts`);
    return one;
  });
}

/** A text that may be missing. */
export function maybe(of: Fields, name: string): string | undefined {
  const value = of[name];
  return typeof value === "string" ? value : undefined;
}

/** Reads JSON. */
export function json(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    throw new Nonsense("it answers something that is not JSON");
  }
}

/** `GET /v1/status`. */
export function status(value: unknown): Status {
  const of = fields(value, "the status");
  const ledger = fields(of["ledger"], "`ledger`");
  return {
    version: text(of, "version"),
    pid: number(of, "pid"),
    config: text(of, "config"),
    audit: text(of, "audit"),
    advisory: texts(of, "advisory"),
    notCovered: texts(of, "not_covered"),
    problems: texts(of, "problems"),
    warnings: texts(of, "warnings"),
    upstreams: list(of["upstreams"], "`upstreams`", (one) => {
      const up = fields(one, "an upstream");
      return { name: text(up, "name"), address: text(up, "address"), target: text(up, "target"), quarantined: number(up, "quarantined") };
    }),
    policies: list(of["policies"], "`policies`", (one) => {
      const policy = fields(one, "a policy");
      return { name: text(policy, "name"), state: text(policy, "state"), message: text(policy, "message") };
    }),
    agents: list(of["agents"], "`agents`", (one) => {
      const agent = fields(one, "an agent");
      return {
        id: text(agent, "id"),
        sponsor: text(agent, "sponsor"),
        trust: number(agent, "trust"),
        quarantined: flag(agent, "quarantined"),
        revoked: flag(agent, "revoked"),
        glassBrokenUntil: maybe(agent, "glass_broken_until"),
      };
    }),
    ledger: { size: number(ledger, "size"), origin: text(ledger, "origin"), verifierKey: text(ledger, "verifier_key") },
  };
}

/** `GET /v1/trust`. */
export function trusts(value: unknown): Trust[] {
  return list(value, "the trust", (one) => {
    const of = fields(one, "an agent's trust");
    return {
      agent: text(of, "agent"),
      score: number(of, "score"),
      standing: text(of, "standing"),
      stage: text(of, "stage"),
      belowCritical: number(of, "below_critical"),
      quarantined: flag(of, "quarantined"),
    };
  });
}

/** `GET /v1/approvals`. */
export function approvals(value: unknown): Approval[] {
  return list(value, "the approvals", approval);
}

/** One approval. */
export function approval(value: unknown): Approval {
  const of = fields(value, "an approval");
  return {
    id: text(of, "id"),
    state: text(of, "state"),
    agent: text(of, "agent"),
    sponsor: maybe(of, "sponsor"),
    server: text(of, "server"),
    method: text(of, "method"),
    tool: maybe(of, "tool"),
    resource: maybe(of, "resource"),
    arguments: of["arguments"],
    digest: text(of, "digest"),
    message: text(of, "message"),
    reason: text(of, "reason"),
    risk: number(of, "risk"),
    trust: number(of, "trust"),
    tier: text(of, "tier"),
    quorum: number(of, "quorum"),
    mfa: flag(of, "mfa"),
    votes: list(of["votes"], "`votes`", (one) => {
      const vote = fields(one, "a vote");
      return { approver: text(vote, "approver"), approve: flag(vote, "approve"), factor: text(vote, "factor"), comment: maybe(vote, "comment") };
    }),
    requestedAt: text(of, "requested_at"),
    expiresAt: text(of, "expires_at"),
  };
}

/** `GET /v1/tools`. */
export function tools(value: unknown): Tool[] {
  return list(value, "the tools", (one) => {
    const of = fields(one, "a tool");
    return { server: text(of, "server"), tool: text(of, "tool"), seen: text(of, "seen"), quarantined: flag(of, "quarantined"), warnings: texts(of, "warnings") };
  });
}

/** `GET /v1/entries`. */
export function entries(value: unknown): { entries: Entry[]; next: number | undefined } {
  const of = fields(value, "a page of the ledger");
  const next = of["next"];
  return {
    entries: list(of["entries"], "`entries`", (one) => {
      const shown = fields(one, "an entry");
      return { index: number(shown, "index"), leafHash: text(shown, "leaf_hash"), entry: fields(shown["entry"], "an entry's body") };
    }),
    next: typeof next === "number" ? next : undefined,
  };
}

/** An answer to an evaluation. An allowed one must name its decision, because its outcome is reported by it. */
export function verdict(value: unknown): Verdict {
  const of = fields(value, "the answer");
  const context = fields(of["context"], "`context`");
  const index = context["index"];
  const told = {
    allowed: flag(of, "decision"),
    verdict: text(context, "verdict"),
    reason: text(context, "reason"),
    message: text(context, "message"),
    decision: maybe(context, "decision_id"),
    approval: maybe(context, "approval"),
    index: typeof index === "number" ? index : undefined,
  };
  if (told.allowed !== (told.verdict === "allow")) throw new Nonsense("the answer contradicts itself");
  if (told.allowed && told.decision === undefined) throw new Nonsense("what is allowed names no decision");
  return told;
}

/** What would be decided. It permits nothing, and names no decision. */
export function preview(value: unknown): Verdict {
  const of = fields(value, "the preview");
  const told = text(of, "verdict");
  return {
    allowed: told === "allow",
    verdict: told,
    reason: text(of, "reason"),
    message: text(of, "message"),
    decision: undefined,
    approval: maybe(of, "approval"),
    index: undefined,
  };
}

/** `GET /v1/self`. What is not certainly enforced is advisory. */
export function caller(value: unknown): Caller {
  const of = fields(value, "the caller");
  return {
    agent: text(of, "agent"),
    trust: number(of, "trust"),
    standing: text(of, "standing"),
    stopped: flag(of, "stopped"),
    tier: text(of, "tier"),
    advisory: text(of, "mode") !== "enforced",
  };
}

/** The last part of a SPIFFE ID. */
export function shortName(agent: string): string {
  return agent.split("/").at(-1) || agent;
}

/** The rules that spoke against, by an entry's record. */
export function rulesAgainst(entry: Record<string, unknown>): string[] {
  const spoken = Array.isArray(entry["policies"]) ? (entry["policies"] as unknown[]) : [];
  return spoken.flatMap((one) => {
    const of = fields(one, "a policy");
    const counts = of["mode"] !== "audit" && (of["effect"] === "deny" || of["effect"] === "require_approval");
    return counts && typeof of["name"] === "string" ? [of["name"]] : [];
  });
}
