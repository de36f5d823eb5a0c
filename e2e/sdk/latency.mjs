// latency.mjs SOCKET: microseconds of a question and of a governed call, sorted, as JSON.
import { Aegis, govern } from "../../sdk/typescript/dist/src/index.js";

const aegis = new Aegis({ socket: process.argv[2] });
const server = "shop-typescript";

async function timed(call, times = 1000) {
  const samples = [];
  for (let number = 0; number < times + 100; number += 1) {
    const start = performance.now();
    await call({ query: `SELECT ${number}` });
    samples.push((performance.now() - start) * 1000);
  }
  return samples.slice(100).sort((a, b) => a - b);
}

const question = await timed((query) => aegis.evaluate("read_query", query, { server }));
const call = await timed(govern(() => undefined, { tool: "read_query", server, aegis }));
console.log(JSON.stringify({ question, "governed call": call }));
aegis.close();
