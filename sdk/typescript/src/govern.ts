/** Functions that ask before they run. */

import { Aegis } from "./client.js";
import { Denied } from "./errors.js";
import { body, check, LOCAL, toolCall, type Outcome, type Question } from "./model.js";

export interface GovernOptions<A extends unknown[]> {
  /** The tool by which policies know the function; by default its name. */
  readonly tool?: string;
  /** The server that it belongs to, in policies. */
  readonly server?: string;
  /** How long a human may take to approve. Milliseconds. */
  readonly wait?: number;
  /** What is judged; by default the one object that the function is called with. */
  readonly judged?: (...args: A) => Readonly<Record<string, unknown>>;
  readonly aegis?: Aegis;
}

let shared: Aegis | undefined;

/** The client of functions that were given none. */
export function sharedAegis(): Aegis {
  return (shared ??= new Aegis());
}

/**
 * Wraps a function: each call is decided first, and its outcome reported. The wrapped function rejects
 * with `Denied`, `ApprovalRequired` or `Unavailable` instead of running.
 *
 * Policies see the members of the object that the function is called with. One that is called
 * otherwise says by `judged` what they see.
 */
export function govern<A extends unknown[], R>(
  fn: (...args: A) => R | Promise<R>,
  options: GovernOptions<A> = {},
): (...args: A) => Promise<R> {
  const tool = options.tool ?? fn.name;
  if (tool === "") throw new TypeError("a function without a name needs `tool`, by which policies know it");
  const judged = options.judged ?? ((...args: A) => named(tool, args));
  return async function (this: unknown, ...args: A): Promise<R> {
    const aegis = options.aegis ?? sharedAegis();
    const question = (): Question => toolCall(tool, judged(...args), options.server ?? LOCAL);
    const asked = body(question());
    const ask = options.wait === undefined ? {} : { wait: options.wait };
    const decision = check(await aegis.evaluate(question(), {}, ask));
    let outcome: Outcome = "failure";
    try {
      // What else ran meanwhile may have changed what is passed: then it was not judged.
      if (body(question()) !== asked) {
        throw new Denied("malformed_message", "The arguments have changed while the call was being decided.");
      }
      const result = await fn.apply(this, args);
      outcome = "success";
      return result;
    } finally {
      await aegis.conclude(decision, outcome);
    }
  };
}

/** A method decorator (TypeScript 5, ECMAScript): `@governed({ tool: "write_query", server: "shop" })`. */
export function governed<A extends unknown[]>(options: GovernOptions<A> = {}) {
  return <R>(
    method: (this: unknown, ...args: A) => Promise<R>,
    context: ClassMethodDecoratorContext,
  ): ((this: unknown, ...args: A) => Promise<R>) =>
    govern(method, { tool: String(context.name), ...options });
}

function named(tool: string, args: unknown[]): Readonly<Record<string, unknown>> {
  const [first, ...more] = args;
  if (first === undefined && more.length === 0) return {};
  if (typeof first === "object" && first !== null && !Array.isArray(first) && more.length === 0) {
    return first as Record<string, unknown>;
  }
  throw new TypeError(`${tool} is called with other than one object; say by \`judged\` what policies see`);
}
