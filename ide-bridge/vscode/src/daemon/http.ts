// HTTP/1.1 over a unix socket, bounded in time and size. Whatever goes wrong is one error with one sentence.

import http from "node:http";

/** An answer, whole. */
export interface Reply {
  status: number;
  body: string;
}

/** There was no answer that could be used. */
export class Unanswered extends Error {}

/** The largest answer that is read. Bytes. */
const LIMIT = 32 << 20;

/** Asks once. */
export function ask(socketPath: string, method: string, path: string, body: unknown, timeoutMs: number): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers: http.OutgoingHttpHeaders = { host: "localhost" };
    if (text !== undefined) {
      headers["content-type"] = "application/json";
      headers["content-length"] = Buffer.byteLength(text);
    }
    // A connection for each question: who asks is attested anew, and none is held open.
    const request = http.request({ socketPath, method, path, headers, agent: false });
    const timer = setTimeout(() => {
      request.destroy(new Unanswered(`no answer from ${socketPath} in ${String(timeoutMs)} ms`));
    }, timeoutMs);
    const fail = (error: Error): void => {
      clearTimeout(timer);
      reject(error instanceof Unanswered ? error : new Unanswered(`${socketPath} cannot be asked: ${error.message}`));
    };
    request.on("error", fail);
    request.on("response", (response) => {
      const parts: Buffer[] = [];
      let size = 0;
      response.on("data", (part: Buffer) => {
        size += part.length;
        if (size > LIMIT) request.destroy(new Unanswered(`${socketPath} answers more than ${String(LIMIT)} bytes`));
        else parts.push(part);
      });
      response.on("error", fail);
      response.on("end", () => {
        clearTimeout(timer);
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(parts).toString("utf8") });
      });
    });
    request.end(text);
  });
}

/** A server-sent event. */
export interface Told {
  event: string;
  data: string;
}

/** Cuts a stream of server-sent events into events. */
export class EventCutter {
  #rest = "";

  /** The events that `part` completes. */
  take(part: string): Told[] {
    const text = this.#rest + part;
    const blocks = text.split("\n\n");
    this.#rest = (blocks.pop() ?? "").slice(-(1 << 20));
    return blocks.flatMap((block) => {
      const lines = block.split("\n");
      const field = (name: string): string[] =>
        lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).replace(/^ /, ""));
      const data = field("data").join("\n");
      return data ? [{ event: field("event").at(-1) ?? "message", data }] : [];
    });
  }
}

/** What a listener is told. */
export interface Ears {
  open: () => void;
  event: (told: Told) => void;
  /** The stream has ended, or was refused with this sentence. */
  end: (why: string) => void;
}

/** Listens until the stream ends or the returned function is called, after which nothing is told. */
export function listen(socketPath: string, path: string, ears: Ears): () => void {
  let over = false;
  const end = (why: string): void => {
    if (over) return;
    over = true;
    request.destroy();
    ears.end(why);
  };
  const request = http.request({ socketPath, path, headers: { host: "localhost" }, agent: false }, (response) => {
    response.setEncoding("utf8");
    // Signs of life come every 15 seconds.
    request.setTimeout(45_000, () => { end("the stream of events has gone silent"); });
    const cutter = new EventCutter();
    let refusal = "";
    const open = response.statusCode === 200;
    if (open && !over) ears.open();
    response.on("data", (part: string) => {
      if (!open) refusal = (refusal + part).slice(0, 4096);
      else if (!over) cutter.take(part).forEach(ears.event);
    });
    response.on("error", () => { end("the stream of events broke"); });
    response.on("end", () => { end(open ? "the daemon ended the stream of events" : sentence(refusal)); });
  });
  request.setTimeout(10_000, () => { end(`no answer from ${socketPath}`); });
  request.on("error", (error) => { end(`${socketPath} cannot be asked: ${error.message}`); });
  request.end();
  return () => {
    over = true;
    request.destroy();
  };
}

/** The sentence in a refusal's body. */
export function sentence(body: string): string {
  try {
    const told: unknown = JSON.parse(body);
    if (typeof told === "object" && told !== null) {
      const { message, error } = told as Record<string, unknown>;
      if (typeof message === "string") return message;
      if (typeof error === "string") return error;
    }
  } catch {
    // What is no JSON is shown as it is, shortened.
  }
  return body.slice(0, 200) || "refused without a word";
}
