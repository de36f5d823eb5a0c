// The questions to the daemon. Those about what may be done never throw: without a usable answer the answer is no.

import * as answers from "./answers.ts";
import { ask, sentence, Unanswered } from "./http.ts";

/** The daemon said no to an order or a reading, in this sentence. */
export class Refused extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }

  /** Whether it wants a one-time code. */
  get wantsCode(): boolean {
    return this.status === 403 && /second factor|--totp|one-time/.test(this.message);
  }
}

const PATIENCE = 5_000;

/** What people ask. */
export class Control {
  readonly #socket: string;

  constructor(socket: string) {
    this.#socket = socket;
  }

  async #ask(method: string, path: string, body?: unknown, patience = PATIENCE): Promise<string> {
    const reply = await ask(this.#socket, method, path, body, patience);
    if (reply.status !== 200) throw new Refused(reply.status, sentence(reply.body));
    return reply.body;
  }

  async status(): Promise<answers.Status> {
    return answers.status(answers.json(await this.#ask("GET", "/v1/status")));
  }

  async approvals(): Promise<answers.Approval[]> {
    return answers.approvals(answers.json(await this.#ask("GET", "/v1/approvals")));
  }

  async vote(id: string, approve: boolean, comment: string | undefined, totp: string | undefined): Promise<answers.Approval> {
    const path = `/v1/approvals/${encodeURIComponent(id)}`;
    return answers.approval(answers.json(await this.#ask("POST", path, { approve, comment, totp })));
  }

  async trust(): Promise<answers.Trust[]> {
    return answers.trusts(answers.json(await this.#ask("GET", "/v1/trust")));
  }

  async tools(): Promise<answers.Tool[]> {
    return answers.tools(answers.json(await this.#ask("GET", "/v1/tools")));
  }

  async pin(tool: answers.Tool, totp: string | undefined): Promise<void> {
    await this.#ask("POST", "/v1/tools", { server: tool.server, tool: tool.tool, digest: tool.seen, totp });
  }

  async order(agent: string, order: "quarantine" | "release", reason: string, totp: string | undefined): Promise<void> {
    await this.#ask("POST", "/v1/agents", { agent, order, reason, totp });
  }

  /** Lifts the policies for an agent for so many minutes; 0 ends it. */
  async glass(agent: string, minutes: number, reason: string, totp: string | undefined): Promise<void> {
    await this.#ask("POST", "/v1/glass", { agent, minutes, reason, totp });
  }

  async entries(query: Readonly<Record<string, string | number>>): Promise<{ entries: answers.Entry[]; next: number | undefined }> {
    const words = new URLSearchParams(Object.entries(query).map(([name, value]): [string, string] => [name, String(value)]));
    return answers.entries(answers.json(await this.#ask("GET", `/v1/entries?${words.toString()}`)));
  }

  /** The canonical bytes of an entry: what its leaf hash is over. */
  entryText(index: number): Promise<string> {
    return this.#ask("GET", `/v1/entries/${String(index)}`);
  }

  async entry(index: number): Promise<Record<string, unknown>> {
    return answers.fields(answers.json(await this.entryText(index)), "an entry");
  }

  proof(index: number): Promise<string> {
    return this.#ask("GET", `/v1/proof/${String(index)}`);
  }
}

/** A file as it is about to be saved. */
export interface Write {
  /** Absolute, with links resolved: where the bytes really go. */
  path: string;
  content: string;
  /** Recorded with the question, so that the ledger tells whether a refusal was obeyed. */
  mode: "assist" | "enforce";
}

/** The name under which policies know the editor. */
export const EDITOR = "editor";

/** What may be done. */
export class Judge {
  readonly #socket: string;

  constructor(socket: string) {
    this.#socket = socket;
  }

  /** Whether a file may be written. */
  async write(write: Write, patience: number): Promise<answers.Verdict> {
    try {
      const reply = await ask(this.#socket, "POST", "/access/v1/evaluation", question(write), patience);
      const value = answers.json(reply.body);
      return reply.status === 200 ? answers.verdict(value) : refusal(value, reply.status);
    } catch (error) {
      if (error instanceof Unanswered) return unanswered(`there is no verdict, because ${error.message}`);
      if (error instanceof answers.Nonsense) return unanswered(`there is no verdict, because the daemon's answer cannot be used: ${error.message}`);
      throw error;
    }
  }

  /** What would be said to a write. Nothing is recorded by it; undefined where the daemon does not say. */
  async preview(write: Write, patience: number): Promise<answers.Verdict | undefined> {
    return this.#told("POST", "/v1/preview", question(write), answers.preview, patience);
  }

  /** Who this editor is to the daemon; undefined where it does not say. */
  async self(): Promise<answers.Caller | undefined> {
    return this.#told("GET", "/v1/self", undefined, answers.caller, PATIENCE);
  }

  /** What is only shown: without a usable answer nothing is. */
  async #told<T>(method: string, path: string, body: unknown, read: (value: unknown) => T, patience: number): Promise<T | undefined> {
    try {
      const reply = await ask(this.#socket, method, path, body, patience);
      return reply.status === 200 ? read(answers.json(reply.body)) : undefined;
    } catch (error) {
      if (error instanceof Unanswered || error instanceof answers.Nonsense) return undefined;
      throw error;
    }
  }

  /** Tells how an allowed write ended. The daemon concludes it as unknown if it does not hear. */
  async report(decision: string, result: "success" | "failure"): Promise<void> {
    try {
      await ask(this.#socket, "POST", "/v1/outcomes", { decision_id: decision, result }, PATIENCE);
    } catch (error) {
      if (!(error instanceof Unanswered)) throw error;
    }
  }
}

/** The question about a write, to be decided or previewed: both are about the same action. */
function question({ path, content, mode }: Write): unknown {
  return {
    subject: { type: "agent", id: "self" },
    action: { name: "file.write", properties: { path, content, mode } },
    resource: { type: "file", id: path, properties: { server: EDITOR } },
  };
}

/** The reason where there was no verdict at all. */
export const UNANSWERED = "unanswered";

function unanswered(message: string): answers.Verdict {
  return { allowed: false, verdict: "deny", reason: UNANSWERED, message, decision: undefined, approval: undefined, index: undefined };
}

function refusal(value: unknown, status: number): answers.Verdict {
  const of = answers.fields(value, "the refusal");
  const message = answers.maybe(of, "message") ?? `the daemon refused the question (${String(status)})`;
  return { ...unanswered(message), reason: answers.maybe(of, "reason") ?? UNANSWERED };
}
