// `@aegis` in the chat: answers from the daemon, without a model.

import * as vscode from "vscode";

import type { Desk } from "./desk.ts";
import * as settings from "./settings.ts";
import { auditText, code, statusText, trustText } from "./words.ts";

/** Registers it where the editor has a chat. */
export function registerChat(desk: Desk, extension: vscode.Uri): vscode.Disposable {
  const participant = vscode.chat.createChatParticipant("aegis.chat", async (request, _context, stream) => {
    const { state, control } = desk.connection;
    if (request.command === "status" || state.kind !== "up") {
      stream.markdown(statusText(state, settings.mode()));
      return;
    }
    try {
      if (request.command === "trust") {
        stream.markdown(trustText(await control.trust()));
      } else if (request.command === "audit") {
        const text = request.prompt.trim();
        const page = await control.entries({ limit: 20, kind: "decision", ...(text ? { text } : {}) });
        stream.markdown(auditText(page.entries));
        stream.button({ command: "aegis.openAudit", title: "Open the audit" });
      } else {
        stream.markdown("I answer `/status`, `/trust` and `/audit` with words to look for.");
      }
    } catch (error) {
      stream.markdown(`The daemon did not answer: ${code(error instanceof Error ? error.message : String(error))}`);
    }
  });
  participant.iconPath = vscode.Uri.joinPath(extension, "media", "aegis.svg");
  return participant;
}
