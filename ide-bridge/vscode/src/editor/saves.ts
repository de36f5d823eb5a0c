// Saves in the editor: where the gate's answers become edits, diagnostics and notices. It decides nothing.

import { realpath } from "node:fs/promises";
import path from "node:path";
import * as vscode from "vscode";

import { rulesAgainst, type Verdict } from "../daemon/answers.ts";
import { UNANSWERED } from "../daemon/client.ts";
import { gitOperation } from "../gate/git.ts";
import { firstDifference, Gate, type Refusal } from "../gate/gate.ts";
import type { Kept } from "../gate/shelf.ts";
import type { Desk } from "./desk.ts";
import * as settings from "./settings.ts";
import { refusalText } from "./words.ts";

/** The editor waits 1.5 s for everyone who wants to be asked before a save. Milliseconds. */
const BEFORE_SAVE = 800;
/** How long typing has to rest before the daemon is asked ahead. Milliseconds. */
const REST = 600;

/** A refusal with its place. */
export class Marked extends vscode.Diagnostic {
  readonly refusal: Refusal;

  constructor(range: vscode.Range, message: string, severity: vscode.DiagnosticSeverity, refusal: Refusal) {
    super(range, message, severity);
    this.refusal = refusal;
    this.source = "aegis";
    this.code = refusal.verdict.reason;
  }
}

/** Where the bytes of a file really go. */
export async function realPath(file: string): Promise<string> {
  const absolute = path.resolve(file);
  try {
    return await realpath(absolute);
  } catch {
    const folder = path.dirname(absolute);
    // What is not there yet is where its folder is.
    return folder === absolute ? absolute : path.join(await realPath(folder), path.basename(absolute));
  }
}

/** The gate, at the editor. */
export class Saves {
  readonly gate: Gate;
  readonly #desk: Desk;
  readonly #marks = vscode.languages.createDiagnosticCollection("aegis");
  readonly #resting = new Map<string, NodeJS.Timeout>();
  readonly #told = new Set<string>();
  /** Files that are being put back: that save is the gate's own. */
  readonly #undoing = new Set<string>();
  /** How often a file was about to be saved: what stands on disk since then may be this editor's own. */
  readonly #begun = new Map<string, number>();
  readonly #subscriptions: vscode.Disposable[];

  constructor(desk: Desk) {
    this.#desk = desk;
    this.gate = new Gate({
      mode: settings.mode,
      ask: (file, content, mode) => desk.connection.judge.write({ path: file, content, mode }, BEFORE_SAVE),
      preview: (file, content, mode) => desk.connection.judge.preview({ path: file, content, mode }, BEFORE_SAVE),
      report: (decision, result) => void desk.connection.judge.report(decision, result),
      keep: (kept) => desk.shelf.keep(kept),
      git: gitOperation,
      now: () => new Date(),
    });
    const { workspace } = vscode;
    this.#subscriptions = [
      this.#marks,
      workspace.onDidOpenTextDocument((document) => void this.#opened(document)),
      workspace.onDidCloseTextDocument((document) => void this.#closed(document)),
      workspace.onDidChangeTextDocument((event) => void this.#edited(event)),
      workspace.onWillSaveTextDocument((event) => {
        const { fileName } = event.document;
        this.#begun.set(fileName, (this.#begun.get(fileName) ?? 0) + 1);
        event.waitUntil(this.#before(event.document));
      }),
      workspace.onDidSaveTextDocument((document) => void this.#after(document)),
      desk.onChange(() => { this.#offerApproved(); }),
    ];
    for (const document of workspace.textDocuments) void this.#opened(document);
  }

  /** Files, but for the editor's own settings: in them a person chooses the mode, also while the daemon is away. */
  #isGoverned({ uri }: vscode.TextDocument): boolean {
    if (uri.scheme !== "file") return false;
    const own = ["User", "Machine"].some((folder) => uri.fsPath.startsWith(path.join(this.#desk.editorFolder, folder, path.sep)));
    return !(own && path.basename(uri.fsPath) === "settings.json");
  }

  dispose(): void {
    for (const timer of this.#resting.values()) clearTimeout(timer);
    vscode.Disposable.from(...this.#subscriptions).dispose();
  }

  async #opened(document: vscode.TextDocument): Promise<void> {
    if (!this.#isGoverned(document)) return;
    const file = await realPath(document.uri.fsPath);
    if (this.gate.knows(file)) return;
    const text = await onDisk(document.uri);
    // A save that came meanwhile knows better.
    if (!this.gate.knows(file)) this.gate.onDisk(file, text);
  }

  async #closed(document: vscode.TextDocument): Promise<void> {
    if (!this.#isGoverned(document)) return;
    const file = await realPath(document.uri.fsPath);
    const others = vscode.workspace.textDocuments.filter((other) => !other.isClosed && this.#isGoverned(other));
    const paths = await Promise.all(others.map((other) => realPath(other.uri.fsPath)));
    if (!paths.includes(file)) this.gate.forget(file);
  }

  async #edited({ document, contentChanges }: vscode.TextDocumentChangeEvent): Promise<void> {
    if (!this.#isGoverned(document) || !contentChanges.length) return;
    if (!document.isDirty) {
      // Read again from disk: somebody else wrote it. What stands there is checked, not believed; and an edit whose save began
      // meanwhile, as on a busy machine, is judged by that save.
      const begun = this.#begun.get(document.fileName);
      const [file, text] = [await realPath(document.uri.fsPath), document.getText()];
      if ((await onDisk(document.uri)) === text && this.#begun.get(document.fileName) === begun) this.gate.onDisk(file, text);
      return;
    }
    const key = document.uri.toString();
    clearTimeout(this.#resting.get(key));
    if (settings.whileTyping()) this.#resting.set(key, setTimeout(() => void this.#pause(document), REST));
  }

  async #pause(document: vscode.TextDocument): Promise<void> {
    this.#resting.delete(document.uri.toString());
    const { version } = document;
    const isUnsaved = (): boolean => !document.isClosed && document.isDirty && document.version === version;
    if (!isUnsaved()) return;
    const refusal = await this.gate.pause(await realPath(document.uri.fsPath), document.getText());
    // Saved or written on meanwhile: this is about another text.
    if (!isUnsaved()) return;
    if (refusal) this.#mark(document.uri, refusal, []);
    else this.#marks.delete(document.uri);
  }

  /** Never throws: after three errors the editor stops asking. What is missed here is seen after the save. */
  async #before(document: vscode.TextDocument): Promise<vscode.TextEdit[]> {
    const started = performance.now();
    try {
      const edits = await this.#judge(document);
      this.#desk.log.debug(`before saving ${document.fileName}: ${String(edits.length)} edits after ${(performance.now() - started).toFixed(0)} ms`);
      return edits;
    } catch (error) {
      this.#desk.log.error(`before saving ${document.fileName}: ${String(error)}`);
      return [];
    }
  }

  async #judge(document: vscode.TextDocument): Promise<vscode.TextEdit[]> {
    if (!this.#isGoverned(document) || settings.mode() === "observe" || this.#undoing.has(document.fileName)) return [];
    clearTimeout(this.#resting.get(document.uri.toString()));
    const file = await realPath(document.uri.fsPath);
    if (!this.gate.knows(file)) this.gate.onDisk(file, await onDisk(document.uri));
    const before = await this.gate.before(file, document.getText());
    if (before.kind === "go") return [];
    const { refusal, to } = before;
    if (refusal.stands !== undefined || to !== undefined) this.#tell(document.uri, refusal);
    return refusal.stands === undefined && to !== undefined ? [vscode.TextEdit.replace(whole(document), to)] : [];
  }

  async #after(document: vscode.TextDocument): Promise<void> {
    if (!this.#isGoverned(document) || this.#undoing.has(document.fileName)) return;
    const text = document.getText();
    const file = await realPath(document.uri.fsPath);
    const restored = text === this.gate.allowed(file);
    const after = await this.gate.after(file, text);
    if (after.kind === "done") {
      const marks = this.#marks.get(document.uri) ?? [];
      // A refusal that was just undone stays in sight until something else is saved.
      if (!restored && marks.every((mark) => !(mark instanceof Marked) || mark.refusal.kept?.text !== text)) this.#marks.delete(document.uri);
    } else {
      if (after.kind === "refused") await this.#undo(document, text, after.to);
      this.#tell(document.uri, after.refusal);
    }
    await this.#desk.connection.refresh();
  }

  /** Takes back what a save has written, if it still stands there. */
  async #undo(document: vscode.TextDocument, written: string, to: string | undefined): Promise<void> {
    if ((await onDisk(document.uri)) !== written) return;
    if (to === undefined) {
      await vscode.workspace.fs.delete(document.uri, { useTrash: false });
      return;
    }
    const edit = new vscode.WorkspaceEdit();
    edit.replace(document.uri, whole(document), to);
    this.#undoing.add(document.fileName);
    try {
      const saved = (await vscode.workspace.applyEdit(edit)) && (await document.save());
      const now = document.getText();
      // The editor writes the line ends of the document.
      const back = saved && now.replaceAll("\r\n", "\n") === to.replaceAll("\r\n", "\n");
      if (back) this.gate.onDisk(await realPath(document.uri.fsPath), now);
      else void vscode.window.showErrorMessage(`Aegis: ${document.fileName} could not be put back; the refused text still stands in it`);
    } finally {
      this.#undoing.delete(document.fileName);
    }
  }

  #tell(uri: vscode.Uri, refusal: Refusal): void {
    this.#mark(uri, refusal, []);
    this.#desk.touch();
    void this.#notify(uri, refusal);
    const { index } = refusal.verdict;
    if (index !== undefined) void this.#nameRules(uri, refusal, index);
  }

  /** The answer names no rules; the ledger does. */
  async #nameRules(uri: vscode.Uri, refusal: Refusal, index: number): Promise<void> {
    try {
      const entry = await this.#desk.connection.control.entry(index);
      this.#desk.known(entry);
      const marks = this.#marks.get(uri) ?? [];
      if (marks.some((mark) => mark instanceof Marked && mark.refusal === refusal)) this.#mark(uri, refusal, rulesAgainst(entry));
      this.#desk.touch();
    } catch (error) {
      this.#desk.log.warn(`entry ${String(index)} cannot be read: ${String(error)}`);
    }
  }

  #mark(uri: vscode.Uri, refusal: Refusal, rules: readonly string[]): void {
    const line = refusal.kept && refusal.before !== undefined ? firstDifference(refusal.before, refusal.kept.text) : 0;
    const severity = refusal.stands === undefined || settings.mode() === "enforce" ? vscode.DiagnosticSeverity.Error : vscode.DiagnosticSeverity.Warning;
    const range = new vscode.Range(line, 0, line, Number.MAX_SAFE_INTEGER);
    this.#marks.set(uri, [new Marked(range, refusalText(refusal, rules), severity, refusal)]);
  }

  async #notify(uri: vscode.Uri, refusal: Refusal): Promise<void> {
    const name = path.basename(uri.fsPath);
    const { kept, stands, verdict } = refusal;
    const show = "Compare";
    const back = "Put Back";
    const queue = "Open Approvals";
    const status = "Status";
    const buttons = kept ? [...(verdict.reason === UNANSWERED ? [status] : []), show, ...(stands === undefined ? [back] : []), ...(verdict.approval ? [queue] : [])] : [];
    const what = stands === undefined ? `did not save ${name}` : `would not save ${name}`;
    const chosen = await vscode.window.showWarningMessage(`Aegis ${what}: ${verdict.message}`, ...buttons);
    if (!kept || !chosen) return;
    if (chosen === status) await vscode.commands.executeCommand("aegis.showStatus");
    else if (chosen === queue) await vscode.commands.executeCommand("aegis.approvals.focus");
    else await vscode.commands.executeCommand(chosen === show ? "aegis.compareRefused" : "aegis.putBack", kept.id);
  }

  /** What waited and is approved now can be saved: once, and as it was. */
  #offerApproved(): void {
    const approved = new Set(this.#desk.approvals.filter((one) => one.state === "approved").map((one) => one.id));
    if (!approved.size) return;
    for (const kept of this.#desk.shelf.list()) {
      if (kept.approval === undefined || !approved.has(kept.approval) || this.#told.has(kept.approval)) continue;
      this.#told.add(kept.approval);
      void this.#offer(kept);
    }
  }

  async #offer(kept: Kept): Promise<void> {
    const save = "Save It Now";
    const chosen = await vscode.window.showInformationMessage(`Aegis: your change of ${path.basename(kept.path)} was approved`, save, "Later");
    if (chosen === save) await this.saveKept(kept);
  }

  /** Puts a refused text back into its file's editor, unsaved. */
  async putBack(kept: Kept): Promise<vscode.TextDocument | undefined> {
    const uri = vscode.Uri.file(kept.path);
    if ((await onDisk(uri)) === undefined) {
      const fresh = await vscode.workspace.openTextDocument({ content: kept.text });
      await vscode.window.showTextDocument(fresh, { preview: false });
      return undefined;
    }
    const document = await vscode.workspace.openTextDocument(uri);
    const edit = new vscode.WorkspaceEdit();
    edit.replace(uri, whole(document), kept.text);
    if (!(await vscode.workspace.applyEdit(edit))) return undefined;
    await vscode.window.showTextDocument(document, { preview: false });
    return document;
  }

  /** Puts it back and saves it, which asks again. */
  async saveKept(kept: Kept): Promise<void> {
    const uri = vscode.Uri.file(kept.path);
    let document: vscode.TextDocument | undefined;
    if ((await onDisk(uri)) === undefined) {
      const verdict = await this.#create(kept);
      if (!verdict.allowed) return;
      document = await vscode.workspace.openTextDocument(uri);
      await vscode.window.showTextDocument(document, { preview: false });
    } else {
      document = await this.putBack(kept);
      if (!document || !(await document.save()) || document.getText() !== kept.text) return;
    }
    this.#marks.delete(uri);
    this.#desk.shelf.discard(kept.id);
    this.#desk.touch();
  }

  /** Writes a file that is not there, if the daemon allows it. */
  async #create(kept: Kept): Promise<Verdict> {
    const { judge } = this.#desk.connection;
    const mode = settings.mode() === "enforce" ? "enforce" : "assist";
    const verdict = await judge.write({ path: kept.path, content: kept.text, mode }, BEFORE_SAVE * 5);
    if (!verdict.allowed) {
      void vscode.window.showWarningMessage(`Aegis: ${verdict.message}`);
      return verdict;
    }
    const uri = vscode.Uri.file(kept.path);
    await vscode.workspace.fs.writeFile(uri, new TextEncoder().encode(kept.text));
    this.gate.onDisk(kept.path, kept.text);
    if (verdict.decision !== undefined) await judge.report(verdict.decision, "success");
    return verdict;
  }

  /** Takes the marks off a file. */
  clear(uri: vscode.Uri): void {
    this.#marks.delete(uri);
  }
}

/** What can be done about a refusal, at its place. */
export class WaysForward implements vscode.CodeActionProvider {
  provideCodeActions(document: vscode.TextDocument, _range: vscode.Range, context: vscode.CodeActionContext): vscode.CodeAction[] {
    return context.diagnostics.flatMap((mark) => {
      if (mark.source !== "aegis") return [];
      // Diagnostics come back as copies: what was refused is found by its place.
      const refusals = vscode.languages.getDiagnostics(document.uri).filter((one): one is Marked => one instanceof Marked);
      const refusal = refusals[0]?.refusal;
      if (!refusal) return [];
      const { kept, verdict } = refusal;
      const action = (title: string, command: string, ...args: unknown[]): vscode.CodeAction => {
        const fix = new vscode.CodeAction(title, vscode.CodeActionKind.QuickFix);
        fix.command = { title, command, arguments: args };
        fix.diagnostics = [mark];
        return fix;
      };
      return [
        ...(kept ? [action("Aegis: Compare with what was refused", "aegis.compareRefused", kept.id), action("Aegis: Put the refused text back, unsaved", "aegis.putBack", kept.id)] : []),
        ...(verdict.approval ? [action("Aegis: Show the approval that it waits for", "aegis.showApproval", verdict.approval)] : []),
        ...(verdict.index === undefined ? [] : [action("Aegis: Show the decision's record", "aegis.openAudit", verdict.index)]),
      ];
    });
  }
}

const whole = (document: vscode.TextDocument): vscode.Range => new vscode.Range(0, 0, document.lineCount, 0);

/** A file's text as it stands on disk; undefined if there is none. */
async function onDisk(uri: vscode.Uri): Promise<string | undefined> {
  let bytes: Uint8Array;
  try {
    bytes = await vscode.workspace.fs.readFile(uri);
  } catch {
    return undefined;
  }
  return vscode.workspace.decode(bytes, { uri });
}
