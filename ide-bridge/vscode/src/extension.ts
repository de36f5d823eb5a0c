// Starts the extension: one desk for the window, the gate at saves, and what shows them.

import * as vscode from "vscode";

import { Audit } from "./editor/audit.ts";
import { registerChat } from "./editor/chat.ts";
import { registerCommands } from "./editor/commands.ts";
import { Desk } from "./editor/desk.ts";
import { Saves, WaysForward } from "./editor/saves.ts";
import { registerServers } from "./editor/servers.ts";
import * as settings from "./editor/settings.ts";
import { Texts } from "./editor/texts.ts";
import { showLists } from "./editor/trees.ts";
import { bar } from "./editor/words.ts";

/** Called by the editor. */
export function activate(context: vscode.ExtensionContext): void {
  const started = performance.now();
  const log = vscode.window.createOutputChannel("Aegis", { log: true });
  const desk = new Desk(context.globalStorageUri.fsPath, log);
  const saves = new Saves(desk);
  const audit = new Audit(desk, context.extensionUri);
  context.subscriptions.push(
    log,
    desk,
    saves,
    showBar(desk),
    showLists(desk),
    new Texts(desk).register(),
    registerCommands(desk, saves, audit),
    registerChat(desk, context.extensionUri),
    registerServers(desk),
    vscode.languages.registerCodeActionsProvider({ scheme: "file" }, new WaysForward(), { providedCodeActionKinds: [vscode.CodeActionKind.QuickFix] }),
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (!event.affectsConfiguration("aegis")) return;
      void desk.connection.refresh();
      desk.touch();
    }),
  );
  desk.connection.start();
  log.info(`active after ${(performance.now() - started).toFixed(1)} ms`);
}

function showBar(desk: Desk): vscode.Disposable {
  const item = vscode.window.createStatusBarItem("aegis.status", vscode.StatusBarAlignment.Left, 100);
  item.name = "Aegis";
  item.command = "aegis.showStatus";
  const background = { fine: undefined, warning: new vscode.ThemeColor("statusBarItem.warningBackground"), error: new vscode.ThemeColor("statusBarItem.errorBackground") };
  const show = (): void => {
    const { text, tooltip, level } = bar(desk.connection.state, settings.mode(), desk.self, desk.trust, desk.pending.length);
    void vscode.commands.executeCommand("setContext", "aegis.up", desk.connection.state.kind === "up");
    Object.assign(item, { text, tooltip, backgroundColor: background[level] });
  };
  show();
  item.show();
  return vscode.Disposable.from(item, desk.onChange(show));
}
