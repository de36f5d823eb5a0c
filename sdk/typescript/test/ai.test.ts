/** The adapter with the real AI SDK, whose loop runs on a scripted model. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { generateText, stepCountIs, tool } from "ai";
import { MockLanguageModelV3 } from "ai/test";
import { z } from "zod";

import { governTools } from "../src/ai.js";
import { Aegis } from "../src/index.js";
import { Daemon } from "./daemon.js";

let daemon: Daemon;
let aegis: Aegis;
before(async () => {
  daemon = await Daemon.start();
  aegis = new Aegis({ socket: daemon.socket });
});
after(async () => {
  aegis.close();
  await daemon.end();
});

const USAGE = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};

/** A model that calls the tool once and then ends. */
function model(query: string) {
  let asked = 0;
  return new MockLanguageModelV3({
    doGenerate: async () => {
      asked += 1;
      return asked === 1
        ? {
            content: [{ type: "tool-call" as const, toolCallId: "1", toolName: "read_query", input: JSON.stringify({ query }) }],
            finishReason: { unified: "tool-calls" as const, raw: undefined },
            usage: USAGE,
            warnings: [],
          }
        : {
            content: [{ type: "text" as const, text: "done" }],
            finishReason: { unified: "stop" as const, raw: undefined },
            usage: USAGE,
            warnings: [],
          };
    },
  });
}

async function run(query: string, ran: string[], client = aegis) {
  const tools = {
    read_query: tool({
      description: "Reads.",
      inputSchema: z.object({ query: z.string() }),
      execute: async ({ query }) => {
        ran.push(query);
        return { rows: 1 };
      },
    }),
  };
  const governed = governTools(tools, { server: "shop", aegis: client });
  const { steps } = await generateText({ model: model(query), tools: governed, prompt: "go", stopWhen: stepCountIs(3) });
  return steps.flatMap((step) => step.content);
}

test("a governed tool runs in the AI SDK's loop", async () => {
  const ran: string[] = [];
  const content = await run("SELECT 1", ran);
  const result = content.find((part) => part.type === "tool-result");
  assert.deepEqual(result?.output, { rows: 1 });
  assert.deepEqual(ran, ["SELECT 1"]);
  assert.deepEqual(await daemon.outcomes(daemon.entries("decision").at(-1)?.decision_id), ["success"]);
});

test("a denied tool does not run, and the model is told why", async () => {
  const ran: string[] = [];
  const content = await run("DROP TABLE orders", ran);
  const error = content.find((part) => part.type === "tool-error");
  assert.match(String(error?.error), /Tables are never dropped/);
  assert.ok(!content.some((part) => part.type === "tool-result"));
  assert.deepEqual(ran, []);
});

test("without a daemon no tool runs", async () => {
  const ran: string[] = [];
  const content = await run("SELECT 1", ran, new Aegis({ socket: "/nonexistent/kernel.sock" }));
  assert.ok(content.some((part) => part.type === "tool-error"));
  assert.deepEqual(ran, []);
});
