/** What is asked and what is answered, in the words of AuthZEN's Authorization API 1.0. */

import { ApprovalRequired, Denied, Unavailable } from "./errors.js";

/** The server of functions that belong to no server. */
export const LOCAL = "local";

/** How an allowed action ended. */
export type Outcome = "success" | "failure" | "unknown";

/** May the calling process do this? Who that is, the operating system tells the daemon. */
export interface Question {
  readonly method:
    | "tools/call"
    | "prompts/get"
    | "resources/read"
    | "file.read"
    | "file.write"
    | "shell.exec"
    | "http.request";
  /** What the method acts on. */
  readonly resourceType: "tool" | "prompt" | "resource" | "file" | "command" | "url";
  readonly resourceId: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly server?: string;
  readonly namespace?: string;
  /** The approval that was waited for, if there was one. */
  readonly approval?: string;
}

/** The answer to one question. */
export interface Decision {
  /** Whether it may happen now. Nothing else permits. */
  readonly allowed: boolean;
  readonly verdict: string;
  readonly reason: string;
  readonly sentence: string;
  readonly decisionId: string | undefined;
  readonly approval: string | undefined;
  readonly index: number | undefined;
}

/** Something that the daemon told without being asked. */
export interface AegisEvent {
  /** `policy`, `lost`, or the kind of an entry: `decision`, `outcome`, `approval_vote` and so on. */
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly id: string | undefined;
}

/** The call of a tool. */
export function toolCall(
  tool: string,
  args: Readonly<Record<string, unknown>> = {},
  server: string = LOCAL,
): Question {
  return { method: "tools/call", resourceType: "tool", resourceId: tool, arguments: args, server };
}

/** The AuthZEN request. What JSON cannot say exactly is not judged, so it is not sent. */
export function body(question: Question): string {
  const { server = LOCAL, namespace, approval } = question;
  try {
    inJson(question.arguments ?? {}, new Set());
  } catch (error) {
    throw new Denied(
      "malformed_message",
      `The arguments of ${question.resourceId} cannot be judged, because JSON cannot say them: ${String(error)}. ` +
        "Give `judged` a function that says what is to be judged.",
    );
  }
  return JSON.stringify({
    subject: { type: "agent", id: "self" },
    action: { name: question.method, properties: question.arguments ?? {} },
    resource: {
      type: question.resourceType,
      id: question.resourceId,
      properties: namespace === undefined ? { server } : { server, namespace },
    },
    ...(approval === undefined ? {} : { context: { approval } }),
  });
}

/** `JSON.stringify` drops functions and turns NaN into null: what is judged must be what is passed. */
function inJson(value: unknown, above: Set<object>): void {
  switch (typeof value) {
    case "string":
    case "boolean":
      return;
    case "number":
      if (!Number.isFinite(value)) throw new TypeError("a number that is not finite");
      return;
    case "object": {
      if (value === null) return;
      if (above.has(value)) throw new TypeError("a cycle");
      const prototype: unknown = Object.getPrototypeOf(value);
      if (!Array.isArray(value) && prototype !== Object.prototype && prototype !== null) {
        throw new TypeError("an object of a class");
      }
      above.add(value);
      // A member without a value is one that is not there, as in an optional argument.
      const members: unknown[] = Array.isArray(value) ? Array.from(value) : Object.values(value).filter((m) => m !== undefined);
      for (const member of members) inJson(member, above);
      above.delete(value);
      return;
    }
    default:
      throw new TypeError(`a value of type ${typeof value}`);
  }
}

/** Reads an answer. Nothing but a well-formed `"decision": true` allows. */
export function readDecision(status: number, text: string): Decision {
  const answer = object(text);
  const context = answer["context"];
  if (status === 200 && typeof answer["decision"] === "boolean" && isObject(context)) {
    const verdict = string(context["verdict"]) ?? "deny";
    return {
      allowed: answer["decision"] && verdict === "allow",
      verdict,
      reason: string(context["reason"]) ?? "",
      sentence: string(context["message"]) ?? "",
      decisionId: string(context["decision_id"]),
      approval: string(context["approval"]),
      index: typeof context["index"] === "number" ? context["index"] : undefined,
    };
  }
  throw refusal(status, answer);
}

/** What an answer that is no decision means. */
export function refusal(status: number, answer: Record<string, unknown>): Denied | Unavailable {
  const message = string(answer["message"]);
  const reason = string(answer["reason"]);
  if (status >= 400 && status < 500 && message !== undefined && reason !== undefined) {
    return new Denied(reason, message);
  }
  const said = message ?? "it said nothing that can be understood";
  return new Unavailable(`the Aegis daemon answered ${status}: ${said}`);
}

/** This decision, if it allows; throws `ApprovalRequired` or `Denied` otherwise. */
export function check(decision: Decision): Decision {
  if (decision.allowed) return decision;
  if (decision.verdict === "require_approval" && decision.approval !== undefined) {
    throw new ApprovalRequired(decision.approval, decision.reason, decision.sentence, decision);
  }
  throw new Denied(decision.reason, decision.sentence, decision);
}

export function object(text: string): Record<string, unknown> {
  try {
    const answer: unknown = JSON.parse(text);
    return isObject(answer) ? answer : {};
  } catch {
    return {};
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function string(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}
