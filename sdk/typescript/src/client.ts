/** The client: HTTP/1.1 over the daemon's unix socket, or over loopback with a token. */

import { existsSync } from "node:fs";
import { Agent, request, type IncomingMessage, type RequestOptions } from "node:http";
import { homedir } from "node:os";
import { join } from "node:path";

import { AegisError, Unavailable } from "./errors.js";
import {
  body,
  LOCAL,
  object,
  readDecision,
  refusal,
  toolCall,
  type AegisEvent,
  type Decision,
  type Outcome,
  type Question,
} from "./model.js";

/** How long one question is held at most. Milliseconds. */
const MAX_WAIT = 60_000;
/** The largest answer. */
const MAX_BODY = 16 * 1024 * 1024;
/** The socket of a daemon under a user of its own. */
const SERVICE = "/run/aegis/kernel.sock";

export interface AegisOptions {
  /** The daemon's `kernel.sock`; by default what the environment says, else where the daemon has it. */
  readonly socket?: string;
  /** An address of loopback instead, such as `http://127.0.0.1:7102`. */
  readonly url?: string;
  /** The token that is asked for there. */
  readonly token?: string;
  /** How long the daemon may take to answer. Milliseconds; no answer in time is no permission. */
  readonly timeout?: number;
}

export interface AskOptions {
  readonly server?: string;
  /** How long a human may take. Milliseconds. */
  readonly wait?: number;
}

/** Asks the daemon of this machine. Connections are kept and reused. */
export class Aegis {
  readonly #to: RequestOptions;
  readonly #place: string;
  readonly #timeout: number;
  readonly #agent = new Agent({ keepAlive: true, scheduling: "lifo" });

  constructor(options: AegisOptions = {}) {
    const { socket, url, token } = placeOf(options);
    const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` };
    if (url === undefined) {
      this.#to = { socketPath: socket, headers, agent: this.#agent };
      this.#place = socket;
    } else {
      this.#to = { host: url.hostname, port: url.port, headers, agent: this.#agent };
      this.#place = url.origin;
    }
    this.#timeout = options.timeout ?? 10_000;
  }

  /**
   * Asks whether a call may happen now, and records the answer.
   *
   * Whoever asks promises to act on `allowed` alone and, if it is so, to report the outcome. Throws
   * `Unavailable` when the daemon cannot be asked, and `Denied` for what is no question.
   */
  async evaluate(
    tool: string | Question,
    args: Readonly<Record<string, unknown>> = {},
    { server = LOCAL, wait = 0 }: AskOptions = {},
  ): Promise<Decision> {
    let question = typeof tool === "string" ? toolCall(tool, args, server) : tool;
    const until = performance.now() + wait;
    for (;;) {
      const left = Math.max(0, Math.min(until - performance.now(), MAX_WAIT));
      const { status, text } = await this.#ask("/access/v1/evaluation", body(question), left);
      const decision = readDecision(status, text);
      const open = decision.verdict === "require_approval" ? decision.approval : undefined;
      if (open === undefined || performance.now() + 1_000 >= until) return decision;
      // It was held as long as one request may be. What has been decided meanwhile counts.
      question = { ...question, approval: open };
    }
  }

  /** Reports how an allowed action ended, once. A report that is lost counts as `unknown`. */
  async report(decision: Decision, outcome: Outcome): Promise<void> {
    if (decision.decisionId === undefined) return;
    const report = JSON.stringify({ decision_id: decision.decisionId, result: outcome });
    const { status, text } = await this.#ask("/v1/outcomes", report, 0);
    if (status !== 200) throw refusal(status, object(text));
  }

  /** As `report`, for what has happened already: trouble is a warning and no error. */
  async conclude(decision: Decision, outcome: Outcome): Promise<void> {
    try {
      await this.report(decision, outcome);
    } catch (error) {
      if (!(error instanceof AegisError)) throw error;
      process.emitWarning(`the outcome of decision ${decision.decisionId} was not reported: ${error.message}`);
    }
  }

  /** What happens to the policies and to this agent, from now on, until the daemon ends. */
  async *events(signal?: AbortSignal): AsyncGenerator<AegisEvent> {
    const answer = await this.#open("GET", "/v1/events", undefined, signal);
    try {
      if (answer.statusCode !== 200) {
        throw new Unavailable(`the Aegis daemon gives no events: it answered ${answer.statusCode}`);
      }
      let rest = "";
      answer.setEncoding("utf8");
      for await (const chunk of answer) {
        rest += String(chunk);
        for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
          const event = eventOf(rest.slice(0, end));
          rest = rest.slice(end + 2);
          if (event !== undefined) yield event;
        }
        if (rest.length > MAX_BODY) throw new Unavailable("the Aegis daemon sends an event without an end");
      }
    } finally {
      answer.destroy();
    }
  }

  /** Closes what is kept open. */
  close(): void {
    this.#agent.destroy();
  }

  async #ask(path: string, text: string, wait: number): Promise<{ status: number; text: string }> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), this.#timeout + wait);
    try {
      const answer = await this.#open("POST", path, { text, wait }, limit.signal);
      const chunks: Buffer[] = [];
      let size = 0;
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        size += chunk.length;
        if (size > MAX_BODY) throw new Unavailable("what answers is no Aegis daemon: its answer has no end");
        chunks.push(chunk);
      }
      if (!answer.complete) throw new Unavailable("the Aegis daemon closed the connection before its answer");
      return { status: answer.statusCode ?? 0, text: Buffer.concat(chunks).toString("utf8") };
    } catch (error) {
      if (error instanceof AegisError) throw error;
      throw new Unavailable(`the Aegis daemon did not answer: ${String(error)}`, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  #open(
    method: string,
    path: string,
    sent?: { text: string; wait: number },
    signal?: AbortSignal,
  ): Promise<IncomingMessage> {
    const headers: Record<string, string | number> = { ...(this.#to.headers as Record<string, string>) };
    if (sent !== undefined) {
      headers["content-type"] = "application/json";
      headers["content-length"] = Buffer.byteLength(sent.text);
      if (sent.wait > 0) headers["prefer"] = `wait=${Math.max(1, Math.round(sent.wait / 1000))}`;
    }
    return new Promise((resolve, reject) => {
      const asking = request({ ...this.#to, method, path, headers, ...(signal ? { signal } : {}) }, resolve);
      asking.on("error", (error) => {
        const advice = "start one with `aegis up`";
        reject(new Unavailable(`no Aegis daemon answers at ${this.#place} (${error.message}); ${advice}`, { cause: error }));
      });
      asking.end(sent?.text);
    });
  }
}

function placeOf(options: AegisOptions): { socket: string; url?: URL; token?: string | undefined } {
  const { env } = process;
  const given = options.socket !== undefined || options.url !== undefined;
  const socket = given ? options.socket : env["AEGIS_KERNEL_SOCKET"];
  const url = given ? options.url : env["AEGIS_KERNEL_URL"];
  if (socket !== undefined) return { socket };
  if (url === undefined) return { socket: defaultSocket() };
  const parsed = new URL(url);
  if (parsed.protocol !== "http:" || parsed.port === "") {
    throw new TypeError(`${url} is no address of the kernel API; give one such as http://127.0.0.1:7102`);
  }
  return { socket: "", url: parsed, token: options.token ?? env["AEGIS_KERNEL_TOKEN"] };
}

/** That of one's own daemon, or of the machine's. */
function defaultSocket(): string {
  const { env } = process;
  const folder = env["AEGIS_SOCKETS"] || env["AEGIS_STATE"];
  if (folder) return join(folder, "kernel.sock");
  const own = join(env["XDG_STATE_HOME"] || join(homedir(), ".local", "state"), "aegis", "kernel.sock");
  return !existsSync(own) && existsSync(SERVICE) ? SERVICE : own;
}

function eventOf(block: string): AegisEvent | undefined {
  const fields = new Map<string, string>();
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).replace(/^ /, ""));
  }
  const data = fields.get("data");
  if (data === undefined) return undefined;
  return { name: fields.get("event") ?? "message", data: object(data), id: fields.get("id") };
}
