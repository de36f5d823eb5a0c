// A client of npm @a2a-js/sdk that visits an agent in both bindings and prints what it saw as JSON.
//
//   node client.mjs NODE_MODULES URL
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, url] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { ClientFactory, JsonRpcTransportFactory, RestTransportFactory } = await load("@a2a-js/sdk/client");
const { Role, AgentCard } = await load("@a2a-js/sdk");

const bindings = { JSONRPC: new JsonRpcTransportFactory(), "HTTP+JSON": new RestTransportFactory() };
const part = (text) => ({ content: { $case: "text", value: text }, metadata: undefined, filename: "", mediaType: "" });
const request = (text) => ({
  tenant: "",
  message: {
    messageId: crypto.randomUUID(), contextId: "", taskId: "", role: Role.ROLE_USER, parts: [part(text)],
    metadata: undefined, extensions: [], referenceTaskIds: [],
  },
  configuration: undefined,
  metadata: undefined,
});
// What an answer says, without what differs from call to call.
const CHANGING = ["id", "taskId", "contextId", "messageId", "artifactId", "timestamp"];
const plain = (value) => JSON.parse(JSON.stringify(value, (key, inner) => (CHANGING.includes(key) ? "…" : inner)));
const attempt = async (call) => {
  try {
    return await call();
  } catch (error) {
    return error.constructor.name;
  }
};

const seen = {};
for (const [binding, transport] of Object.entries(bindings)) {
  const factory = new ClientFactory({ transports: [transport], preferredTransports: [binding] });
  const card = AgentCard.fromJSON({
    name: "planner", description: "", version: "1.0.0", skills: [], defaultInputModes: ["text/plain"],
    defaultOutputModes: ["text/plain"], capabilities: { streaming: true },
    supportedInterfaces: [{ url, protocolBinding: binding, protocolVersion: "1.0" }],
  });
  const client = await factory.createFromAgentCard(card);
  const note = (what, value) => {
    seen[`${what} (${binding})`] = value;
  };
  let task;
  note("hello", await attempt(async () => {
    const answer = await client.sendMessage(request("hello"));
    task = answer.id ?? answer.task?.id;
    return plain(answer);
  }));
  note("hello, streamed", await attempt(async () => {
    const events = [];
    for await (const event of client.sendMessageStream(request("hello"))) events.push(plain(event));
    return events;
  }));
  note("its task", await attempt(async () => plain(await client.getTask({ tenant: "", id: task }))));
  note("no task", await attempt(() => client.getTask({ tenant: "", id: "nowhere" })));
  note("forbidden", await attempt(async () => {
    await client.sendMessage(request("forbidden"));
    return "answered";
  }));
  note("forbidden, streamed", await attempt(async () => {
    for await (const event of client.sendMessageStream(request("forbidden"))) void event;
    return "answered";
  }));
}
console.log(JSON.stringify(seen));
