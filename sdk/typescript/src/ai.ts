/**
 * Tools of the Vercel AI SDK (`ai`), governed.
 *
 *     import { governTools } from "aegis-sdk/ai";
 *     const { text } = await generateText({ model, tools: governTools(tools, { server: "shop" }), prompt });
 *
 * A refusal is the tool's error, which the AI SDK gives to the model; the tool has not run. Tools without
 * `execute` run elsewhere, and are left as they are.
 */

import type { Aegis } from "./client.js";
import { govern } from "./govern.js";

/** What an executable tool has, in every version of the AI SDK. */
type Execute = (input: never, options: never) => unknown;

export interface GovernToolsOptions {
  readonly server?: string;
  readonly wait?: number;
  readonly aegis?: Aegis;
}

/** The same tools, each of which asks before it runs. */
export function governTools<T extends object>(tools: T, options: GovernToolsOptions = {}): T {
  const entries = Object.entries(tools as Record<string, object>);
  return Object.fromEntries(entries.map(([name, tool]) => [name, governTool(name, tool, options)])) as T;
}

/** One tool, by the name that the model calls it by. */
export function governTool<T extends object>(name: string, tool: T, options: GovernToolsOptions = {}): T {
  const execute = (tool as { execute?: Execute }).execute;
  if (execute === undefined) return tool;
  const run = (input: unknown, call: unknown): unknown => execute.call(tool, input as never, call as never);
  const governed = govern(
    async (input: unknown, call: unknown) => settled(await run(input, call)),
    { ...options, tool: name, judged: (input) => (input ?? {}) as Record<string, unknown> },
  );
  return { ...tool, execute: governed };
}

/** A tool may give its result bit by bit: then it has ended when the last bit is there, which is its result. */
async function settled(result: unknown): Promise<unknown> {
  if (typeof result !== "object" || result === null || !(Symbol.asyncIterator in result)) return result;
  let last: unknown;
  for await (const part of result as AsyncIterable<unknown>) last = part;
  return last;
}
