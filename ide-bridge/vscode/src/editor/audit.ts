// The ledger in a tab: entries with filters, one entry with its proof, checked here against the daemon's verifier key. The page has no
// network and gets nothing but texts.

import { randomBytes } from "node:crypto";
import * as vscode from "vscode";

import { fields, maybe } from "../daemon/answers.ts";
import { check, leafHash, Unproven } from "../ledger/proof.ts";
import type { Desk } from "./desk.ts";
import { shortPath } from "./trees.ts";
import { entryLine } from "./words.ts";

/** What the page may filter by: what the ledger's query knows. */
const FILTERS = new Set(["kind", "result", "reason", "tool", "server", "agent", "text"]);

/** The tab; there is one at a time. */
export class Audit {
  readonly #desk: Desk;
  readonly #media: vscode.Uri;
  #panel: vscode.WebviewPanel | undefined;
  #wanted: { index: number | undefined; text: string | undefined } = { index: undefined, text: undefined };

  constructor(desk: Desk, extension: vscode.Uri) {
    this.#desk = desk;
    this.#media = vscode.Uri.joinPath(extension, "media");
  }

  /** Opens it, at an entry or with a filter. */
  open(index?: number, text?: string): void {
    this.#wanted = { index, text };
    if (this.#panel) {
      this.#panel.reveal();
      this.#sendWanted();
      return;
    }
    const panel = vscode.window.createWebviewPanel("aegis.audit", "Aegis Audit", vscode.ViewColumn.Active, {
      enableScripts: true,
      localResourceRoots: [this.#media],
      retainContextWhenHidden: true,
    });
    this.#panel = panel;
    const { webview } = panel;
    const grown = this.#desk.onChange(() => void webview.postMessage({ kind: "grown", size: this.#desk.connection.status?.ledger.size ?? 0 }));
    panel.onDidDispose(() => {
      grown.dispose();
      this.#panel = undefined;
    });
    webview.onDidReceiveMessage((message: unknown) => void this.#asked(message));
    webview.html = this.#page(webview);
  }

  #sendWanted(): void {
    void this.#panel?.webview.postMessage({ kind: "wanted", ...this.#wanted });
  }

  async #asked(message: unknown): Promise<void> {
    const of = fields(message, "the page's message");
    try {
      if (of["kind"] === "ready") this.#sendWanted();
      else if (of["kind"] === "entries") await this.#entries(of);
      else if (of["kind"] === "entry" && Number.isSafeInteger(of["index"])) await this.#entry(Number(of["index"]));
    } catch (error) {
      await this.#panel?.webview.postMessage({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
    }
  }

  async #entries(of: Record<string, unknown>): Promise<void> {
    const filter = fields(of["filter"] ?? {}, "the filter");
    const query: Record<string, string | number> = { limit: 100 };
    for (const [name, value] of Object.entries(filter)) {
      if (FILTERS.has(name) && typeof value === "string" && value) query[name] = value;
    }
    if (Number.isSafeInteger(of["after"])) query["after"] = Number(of["after"]);
    const page = await this.#desk.connection.control.entries(query);
    const lines = page.entries.map((entry) => {
      const told = entryLine(entry);
      return { ...told, index: entry.index, at: maybe(entry.entry, "timestamp") ?? "", what: [told.verb, shortPath(told.target)].join(" ") };
    });
    await this.#panel?.webview.postMessage({ kind: "entries", lines, next: page.next, more: "after" in query });
  }

  async #entry(index: number): Promise<void> {
    const { control, status } = this.#desk.connection;
    const body = await control.entryText(index);
    let told: { proven: boolean; message: string };
    try {
      const { size, origin } = check(body, index, await control.proof(index), status?.ledger.verifierKey ?? "");
      told = { proven: true, message: `Proven here: entry ${String(index)} is in the log ${origin}, covered by a checkpoint over ${String(size)} entries that the daemon's key has signed` };
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      told = { proven: false, message: error instanceof Unproven ? `NOT proven: ${message}` : `No proof yet: ${message}` };
    }
    const entry = JSON.stringify(JSON.parse(body), null, 2);
    await this.#panel?.webview.postMessage({ kind: "entry", index, entry, leaf: `sha256:${leafHash(body).toString("hex")}`, ...told });
  }

  #page(webview: vscode.Webview): string {
    const nonce = randomBytes(16).toString("base64");
    const file = (name: string): string => webview.asWebviewUri(vscode.Uri.joinPath(this.#media, name)).toString();
    const policy = `default-src 'none'; style-src ${webview.cspSource}; script-src 'nonce-${nonce}'`;
    const filter = (name: string, label: string): string => `<label>${label} <input name="${name}" autocomplete="off" spellcheck="false"></label>`;
    return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<link rel="stylesheet" href="${file("audit.css")}">
<title>Aegis Audit</title>
</head>
<body>
<form id="filter" aria-label="Filter">
<label>Result <select name="result"><option value="">any</option><option>allow</option><option>deny</option><option>require_approval</option></select></label>
<label>Kind <select name="kind"><option value="">any</option><option value="decision">decision</option><option value="outcome">outcome</option><option value="approval_requested">approval_requested</option><option value="approval_vote">approval_vote</option><option value="configuration">configuration</option></select></label>
${filter("text", "Text")}
${filter("reason", "Reason")}
<button type="submit">Filter</button>
<span id="grown" role="status"></span>
</form>
<div id="both">
<div id="left"><table aria-label="Entries"><thead><tr><th>Entry</th><th>Time</th><th>Result</th><th>Agent</th><th>Action</th><th>Why</th></tr></thead><tbody id="lines"></tbody></table>
<p id="empty" hidden>Nothing is recorded that fits. Entries appear as soon as an agent acts, or you save a file in the modes assist and enforce.</p>
<button id="more" hidden>Older entries</button></div>
<section id="one" aria-label="Entry" hidden><h2 id="title"></h2><p id="proof"></p><p id="leaf"></p><pre id="entry"></pre></section>
</div>
<script nonce="${nonce}" src="${file("audit.js")}"></script>
</body>
</html>`;
  }
}
