// The MCP servers behind the daemon, for the editor's own client: it reaches them through Aegis and not beside it.

import * as vscode from "vscode";

import type { Desk } from "./desk.ts";
import * as settings from "./settings.ts";
import { serverOf } from "./words.ts";

/** Registers the provider. */
export function registerServers(desk: Desk): vscode.Disposable {
  const changed = new vscode.EventEmitter<void>();
  let known = "";
  const watch = desk.onChange(() => {
    const now = JSON.stringify(desk.connection.status?.upstreams.map((upstream) => upstream.address) ?? []);
    if (now !== known) changed.fire();
    known = now;
  });
  const provider = vscode.lm.registerMcpServerDefinitionProvider("aegis.upstreams", {
    onDidChangeMcpServerDefinitions: changed.event,
    provideMcpServerDefinitions: () =>
      (desk.connection.status?.upstreams ?? []).flatMap((upstream): (vscode.McpHttpServerDefinition | vscode.McpStdioServerDefinition)[] => {
        const server = serverOf(upstream.address);
        if (!server) return [];
        const label = `${upstream.name} (Aegis)`;
        if ("url" in server) return [new vscode.McpHttpServerDefinition(label, vscode.Uri.parse(server.url, true))];
        const env = { AEGIS_SOCKET: desk.connection.sockets.control };
        return [new vscode.McpStdioServerDefinition(label, settings.program(), server.args, env)];
      }),
  });
  return vscode.Disposable.from(changed, watch, provider);
}
