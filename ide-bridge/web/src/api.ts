// What the daemon is asked, and what of its answers is shown. The token travels in a header: cookies know no ports, and whatever else listens
// on this machine would be sent one.

/** An answer that says no, in the daemon's words. */
export class Refused extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** There was no answer. */
export class Away extends Error {}

export interface Session {
  token?: string;
  read_only: boolean;
}

export interface Upstream {
  name: string;
  namespace: string;
  address: string;
  target: string;
  pinned: number;
  quarantined: number;
}

export interface Agent {
  id: string;
  sponsor: string;
  trust: number;
  quarantined: boolean;
  revoked: boolean;
  glass_broken_until?: string;
}

export interface Status {
  version: string;
  pid: number;
  started_at: string;
  trust_domain: string;
  config: string;
  audit: string;
  advisory: string[];
  not_covered: string[];
  upstreams: Upstream[];
  policies: { name: string; state: string; message: string }[];
  agents: Agent[];
  ledger: { place: string; origin: string; size: number; verifier_key: string };
  problems: string[];
  warnings: string[];
}

export interface Trust {
  agent: string;
  score: number;
  standing: string;
  stage: string;
  a: number;
  b: number;
  below_critical: number;
  quarantined: boolean;
  as_of: number;
}

export interface Approval {
  id: string;
  state: string;
  agent: string;
  sponsor: string | null;
  server: string;
  method: string;
  tool: string | null;
  resource?: string;
  arguments: unknown;
  digest: string;
  message: string;
  reason: string;
  risk: number;
  trust: number;
  tier: string;
  quorum: number;
  mfa: boolean;
  votes: { approver: string; approve: boolean; factor: string; comment: string | null }[];
  requested_at: string;
  expires_at: string;
}

export interface PolicyRef {
  name: string;
  digest: string;
  effect: string;
  mode: string;
}

export interface Entry {
  kind: string;
  timestamp: string;
  result: string;
  /** Absent where there is none, as every member that would be empty. */
  action?: { kind?: string; protocol?: string; method?: string; server?: string; tool?: string } & Record<string, unknown>;
  agent_id?: string;
  sponsor?: string;
  resource?: string;
  reason?: string;
  decision_id?: string;
  policies?: PolicyRef[];
  approval?: string;
  tier?: string;
  risk?: number;
  trust?: number;
  trust_as_of?: number;
  detail?: Record<string, unknown>;
}

export interface Stored {
  index: number;
  leaf_hash: string;
  entry: Entry;
}

export interface Page {
  entries: Stored[];
  next: number | null;
}

export interface Explanation {
  verdict: string;
  reason: string;
  message: string;
  computation: string[];
  rules: string[];
  would_allow: string[];
  notes?: string[];
}

const TOKEN = "aegis-console";

/** Asks the daemon as one session. */
export class Api {
  readonly #token: string;

  constructor(token: string) {
    this.#token = token;
  }

  /** The session that this tab has, if it has one. */
  static resumed(): Api | undefined {
    const token = sessionStorage.getItem(TOKEN);
    return token ? new Api(token) : undefined;
  }

  /** Exchanges a link's code. */
  static async entered(code: string): Promise<Api> {
    const response = await ask("session", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: code }),
    });
    const session = (await answered(response).then((it) => it.json())) as Session;
    if (!session.token) throw new Refused(response.status, "the daemon gave no session");
    sessionStorage.setItem(TOKEN, session.token);
    return new Api(session.token);
  }

  /** Forgets the session, here and at the daemon. */
  async leave(): Promise<void> {
    sessionStorage.removeItem(TOKEN);
    await this.#send("v1/session", { method: "DELETE" });
  }

  /** What has ended is not tried again. */
  static forget(): void {
    sessionStorage.removeItem(TOKEN);
  }

  async #send(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = { authorization: `Bearer ${this.#token}`, ...(init.body ? { "content-type": "application/json" } : {}) };
    return answered(await ask(path, { ...init, headers }));
  }

  async #json<T>(path: string, init: RequestInit = {}): Promise<T> {
    return (await this.#send(path, init).then((response) => response.json())) as T;
  }

  session = (): Promise<Session> => this.#json("v1/session");
  status = (): Promise<Status> => this.#json("v1/status");
  trust = (): Promise<Trust[]> => this.#json("v1/trust");
  approvals = (): Promise<Approval[]> => this.#json("v1/approvals");
  checkpoint = (): Promise<string> => this.#send("checkpoint").then((response) => response.text());
  entry = (index: number): Promise<string> => this.#send(`v1/entries/${index}`).then((response) => response.text());
  proof = (index: number): Promise<string> => this.#send(`v1/proof/${index}`).then((response) => response.text());
  growth = (from: number, to: number): Promise<{ proof: string[] }> => this.#json(`v1/consistency/${from}/${to}`);
  explain = (action: object): Promise<Explanation> => this.#json("v1/explain", { method: "POST", body: JSON.stringify(action) });

  entries(query: Record<string, string>): Promise<Page> {
    return this.#json(`v1/entries?${new URLSearchParams(query).toString()}`);
  }

  vote(id: string, vote: { approve: boolean; comment?: string; totp?: string }): Promise<Approval> {
    return this.#json(`v1/approvals/${encodeURIComponent(id)}`, { method: "POST", body: JSON.stringify(vote) });
  }

  /** Says each time that the ledger has grown by something about an agent; ends when the daemon does. */
  async events(signal: AbortSignal, told: (opened: boolean) => void): Promise<void> {
    const { body } = await this.#send("v1/events", { signal });
    if (!body) throw new Error("the daemon's stream has no body");
    const [reader, decoder] = [body.getReader(), new TextDecoder()];
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop() ?? "";
      for (const event of events) if (event.includes("data:")) told(event.includes("event: open"));
    }
  }
}

async function ask(path: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(`./api/${path}`, init);
  } catch {
    throw new Away("the daemon does not answer");
  }
}

/** The answer, if it is one. */
async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  let message = `the daemon answered ${response.status}`;
  try {
    const problem = (await response.json()) as { message?: unknown; error?: unknown };
    const said = problem.message ?? problem.error;
    if (typeof said === "string") message = said;
  } catch {
    // It is no answer of the daemon's.
  }
  throw new Refused(response.status, message);
}
