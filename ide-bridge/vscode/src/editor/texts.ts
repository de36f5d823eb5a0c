// Texts that are shown and not edited: what was refused, what an approval is about.

import path from "node:path";
import * as vscode from "vscode";

import type { Approval } from "../daemon/answers.ts";
import type { Kept } from "../gate/shelf.ts";
import type { Desk } from "./desk.ts";
import { approvalText, argument } from "./words.ts";

const SCHEME = "aegis";

/** The address of a refused text. */
export function keptUri(kept: Kept): vscode.Uri {
  return vscode.Uri.from({ scheme: SCHEME, authority: "refused", path: `/${kept.id}/${path.basename(kept.path)}` });
}

/** The address of what an approval is about. */
export function approvalUri(approval: Approval): vscode.Uri {
  return vscode.Uri.from({ scheme: SCHEME, authority: "approval", path: `/${approval.id}/Approval ${approval.id}.txt` });
}

/** The address of the text that an approval would let be written. */
export function proposedUri(approval: Approval, file: string): vscode.Uri {
  return vscode.Uri.from({ scheme: SCHEME, authority: "proposed", path: `/${approval.id}/${path.basename(file)}` });
}

/** The file and the text that an approval would let be written, if it is about that. */
export function proposed(approval: Approval): { file: string; content: string } | undefined {
  const [file, content] = [approval.resource ?? argument(approval.arguments, "path"), argument(approval.arguments, "content")];
  return file !== undefined && content !== undefined && path.isAbsolute(file) ? { file, content } : undefined;
}

/** Provides them. */
export class Texts implements vscode.TextDocumentContentProvider {
  readonly #desk: Desk;
  readonly #changed = new vscode.EventEmitter<vscode.Uri>();
  readonly onDidChange = this.#changed.event;

  constructor(desk: Desk) {
    this.#desk = desk;
  }

  register(): vscode.Disposable {
    const again = this.#desk.onChange(() => {
      for (const document of vscode.workspace.textDocuments) {
        if (document.uri.scheme === SCHEME && document.uri.authority === "approval") this.#changed.fire(document.uri);
      }
    });
    return vscode.Disposable.from(again, this.#changed, vscode.workspace.registerTextDocumentContentProvider(SCHEME, this));
  }

  provideTextDocumentContent(uri: vscode.Uri): string {
    const id = uri.path.split("/")[1] ?? "";
    if (uri.authority === "refused") return this.#desk.shelf.get(id)?.text ?? "";
    const approval = this.#desk.approvals.find((one) => one.id === id);
    if (!approval) return "This approval is no longer there.\n";
    return uri.authority === "proposed" ? (proposed(approval)?.content ?? "") : approvalText(approval);
  }
}
