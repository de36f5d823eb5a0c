// call.mjs SOCKET LOG QUERY…: each query by a governed function; what the caller was told, as JSON.
import { appendFileSync } from "node:fs";

import { Aegis, AegisError, govern } from "../../sdk/typescript/dist/src/index.js";

const [socket, log, ...queries] = process.argv.slice(2);
const aegis = new Aegis({ socket });
const readQuery = govern(
  ({ query }) => {
    appendFileSync(log, `${query}\n`);
    return "1 row";
  },
  { tool: "read_query", server: "shop-typescript", aegis },
);
const told = [];
for (const query of queries) {
  try {
    told.push(await readQuery({ query }));
  } catch (error) {
    if (!(error instanceof AegisError)) throw error;
    told.push(error.message);
  }
}
console.log(JSON.stringify(told));
aegis.close();
