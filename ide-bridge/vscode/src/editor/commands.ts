// The commands. Orders go to the daemon, which asks who orders and for a one-time code where one is enrolled.

import path from "node:path";
import * as vscode from "vscode";

import { type Agent, type Approval, shortName, type Trust } from "../daemon/answers.ts";
import type { Mode } from "../gate/gate.ts";
import type { Kept } from "../gate/shelf.ts";
import type { Audit } from "./audit.ts";
import type { Desk } from "./desk.ts";
import { realPath, type Saves } from "./saves.ts";
import * as settings from "./settings.ts";
import { approvalUri, keptUri, proposed, proposedUri } from "./texts.ts";
import { Line, shortPath } from "./trees.ts";
import { subject } from "./words.ts";

const { window } = vscode;

/** Registers all of them. */
export function registerCommands(desk: Desk, saves: Saves, audit: Audit): vscode.Disposable {
  const commands: Record<string, (...args: unknown[]) => unknown> = {
    "aegis.approve": (chosen) => vote(desk, chosen, true),
    "aegis.deny": (chosen) => vote(desk, chosen, false),
    "aegis.showApproval": (chosen) => showApproval(desk, chosen),
    "aegis.stopAgent": (chosen) => order(desk, chosen, "quarantine"),
    "aegis.releaseAgent": (chosen) => order(desk, chosen, "release"),
    "aegis.breakGlass": (chosen) => breakGlass(desk, chosen),
    "aegis.endBreakGlass": (chosen) => endBreakGlass(desk, chosen),
    "aegis.reviewTools": () => reviewTools(desk),
    "aegis.setMode": () => chooseMode(),
    "aegis.showStatus": () => showStatus(desk),
    "aegis.openAudit": (index) => { audit.open(typeof index === "number" ? index : undefined); },
    "aegis.auditFile": () => auditFile(audit),
    "aegis.compareRefused": (chosen) => withKept(desk, chosen, compare),
    "aegis.putBack": (chosen) => withKept(desk, chosen, (kept) => saves.putBack(kept)),
    "aegis.saveRefused": (chosen) => withKept(desk, chosen, (kept) => saves.saveKept(kept)),
    "aegis.discardRefused": (chosen) => withKept(desk, chosen, (kept) => discard(desk, kept)),
    "aegis.refresh": async () => {
      await desk.connection.refresh();
      await desk.read();
    },
    "aegis.startDaemon": () => { startDaemon(); },
    "aegis.openWalkthrough": () => vscode.commands.executeCommand("workbench.action.openWalkthrough", "aegis.aegis-vscode#aegis.start", false),
  };
  return vscode.Disposable.from(...Object.entries(commands).map(([name, run]) => vscode.commands.registerCommand(name, run)));
}

/** What the daemon asks of whoever breaks the glass. */
const GLASS_REASON = 10;
const GLASS_MINUTES = 480;

/** What a command was called for: a line of a list, an id, or nothing. */
function chosenOf<T>(chosen: unknown, all: readonly T[], idOf: (one: T) => string): T | undefined {
  const id = chosen instanceof Line ? idOf(chosen.of as T) : chosen;
  return all.find((one) => idOf(one) === id);
}

async function pick<T>(title: string, all: readonly T[], say: (one: T) => vscode.QuickPickItem): Promise<T | undefined> {
  if (!all.length) {
    void window.showInformationMessage(`Aegis: ${title}: there is nothing`);
    return undefined;
  }
  const picked = await window.showQuickPick(all.map((one) => ({ ...say(one), one })), { title: `Aegis: ${title}` });
  return picked?.one;
}

function name(approval: Approval): string {
  const { verb, target } = subject(approval);
  return `${verb} ${shortPath(target)}`;
}

async function vote(desk: Desk, chosen: unknown, approve: boolean): Promise<void> {
  const word = approve ? "Approve" : "Deny";
  const pending = desk.pending;
  const approval =
    chosenOf(chosen, pending, (one) => one.id) ??
    (await pick(word, pending, (one) => ({ label: name(one), description: shortName(one.agent), detail: one.message })));
  if (!approval) return;
  const comment = await window.showInputBox({
    title: `Aegis: ${word} ${name(approval)}`,
    prompt: `${shortName(approval.agent)}, risk ${String(approval.risk)}, trust ${String(approval.trust)}, ${approval.tier}: ${approval.message}`,
    placeHolder: approve ? "Comment (may be empty)" : "Why",
    ignoreFocusOut: true,
    validateInput: (text) => (approve || text.trim() ? undefined : "Say why; it is recorded"),
  });
  if (comment === undefined) return;
  const what = `${word} ${approval.id}`;
  const done = await desk.order(what, (totp) => desk.connection.control.vote(approval.id, approve, comment.trim() || undefined, totp), approve && approval.mfa);
  if (done) void window.setStatusBarMessage(`Aegis: ${approve ? "approved" : "denied"} ${name(approval)}`, 5_000);
}

async function showApproval(desk: Desk, chosen: unknown): Promise<void> {
  const approval: Approval | undefined =
    chosenOf(chosen, desk.approvals, (one) => one.id) ?? (await pick("Approvals", desk.approvals, (one) => ({ label: name(one), description: one.state })));
  if (!approval) return;
  const change = proposed(approval);
  if (change) {
    const file = vscode.Uri.file(change.file);
    const there = await vscode.workspace.fs.stat(file).then(() => true, () => false);
    if (there) {
      await vscode.commands.executeCommand("vscode.diff", file, proposedUri(approval, change.file), `${path.basename(change.file)}: now and as asked (${approval.id})`);
      return;
    }
  }
  await window.showTextDocument(await vscode.workspace.openTextDocument(approvalUri(approval)), { preview: true });
}

async function order(desk: Desk, chosen: unknown, what: "quarantine" | "release"): Promise<void> {
  const stop = what === "quarantine";
  const all = desk.trust.filter((one) => one.quarantined !== stop);
  const title = stop ? "Stop an agent" : "Release an agent";
  const agent: Trust | undefined =
    chosenOf(chosen, all, (one) => one.agent) ?? (await pick(title, all, (one) => ({ label: shortName(one.agent), description: one.agent })));
  if (!agent) return;
  const reason = await window.showInputBox({
    title: `Aegis: ${title}: ${shortName(agent.agent)}`,
    prompt: stop ? "Every action of this agent is denied from now on" : "Its actions are decided by the policies again",
    placeHolder: "Why",
    ignoreFocusOut: true,
    validateInput: (text) => (text.trim() ? undefined : "Say why; it is recorded"),
  });
  if (reason !== undefined) await desk.order(title, (totp) => desk.connection.control.order(agent.agent, what, reason.trim(), totp));
}

/** The agents of the daemon for whom the policies are lifted, or are not. */
function agents(desk: Desk, lifted: boolean): Agent[] {
  return (desk.connection.status?.agents ?? []).filter((one) => !one.revoked && (one.glassBrokenUntil !== undefined) === lifted);
}

async function pickAgent(desk: Desk, chosen: unknown, title: string, lifted: boolean): Promise<Agent | undefined> {
  const all = agents(desk, lifted);
  const named = chosen instanceof Line ? (chosen.of as Trust).agent : chosen;
  return all.find((one) => one.id === named) ?? pick(title, all, (one) => ({ label: shortName(one.id), description: one.id }));
}

async function breakGlass(desk: Desk, chosen: unknown): Promise<void> {
  const title = "Break the glass";
  const agent = await pickAgent(desk, chosen, title, false);
  if (!agent) return;
  const reason = await window.showInputBox({
    title: `Aegis: ${title} for ${shortName(agent.id)}`,
    prompt: "What the policies refuse or ask about passes for a while, and is recorded as that",
    placeHolder: "Why, in at least ten characters",
    ignoreFocusOut: true,
    validateInput: (text) => (text.trim().length >= GLASS_REASON ? undefined : "Say why in at least ten characters; it is recorded"),
  });
  if (reason === undefined) return;
  const minutes = await window.showInputBox({
    title: `Aegis: ${title} for ${shortName(agent.id)}`,
    prompt: `For how many minutes, at most ${String(GLASS_MINUTES)}`,
    value: "30",
    ignoreFocusOut: true,
    validateInput: (text) => (/^[1-9]\d{0,2}$/.test(text.trim()) && Number(text) <= GLASS_MINUTES ? undefined : `1 to ${String(GLASS_MINUTES)}`),
  });
  if (minutes !== undefined) await desk.order(title, (totp) => desk.connection.control.glass(agent.id, Number(minutes), reason.trim(), totp));
}

async function endBreakGlass(desk: Desk, chosen: unknown): Promise<void> {
  const title = "Put the policies in force again";
  const agent = await pickAgent(desk, chosen, title, true);
  if (agent) await desk.order(title, (totp) => desk.connection.control.glass(agent.id, 0, "ended in the editor", totp));
}

async function reviewTools(desk: Desk): Promise<void> {
  if (!desk.connection.status) {
    void window.showWarningMessage("Aegis: there is no daemon");
    return;
  }
  const tools = (await desk.connection.control.tools()).filter((tool) => tool.quarantined);
  const tool = await pick("Tools whose definition has changed", tools, (one) => ({ label: `${one.server}/${one.tool}`, description: one.seen, detail: one.warnings.join("; ") }));
  if (!tool) return;
  const agree = "Agree to This Definition";
  const detail = [`Digest ${tool.seen}`, ...tool.warnings, "Look at it with `aegis tools show` first."].join("\n");
  const answer = await window.showWarningMessage(`Calls of ${tool.server}/${tool.tool} are refused until somebody agrees to its new definition.`, { modal: true, detail }, agree);
  if (answer === agree) await desk.order("Pin a tool", (totp) => desk.connection.control.pin(tool, totp));
}

async function chooseMode(): Promise<void> {
  const modes: { label: Mode; description: string }[] = [
    { label: "observe", description: "Show what the daemon records; ask nothing at saves" },
    { label: "assist", description: "Ask at each save and show what is refused; undo nothing" },
    { label: "enforce", description: "Ask at each save; undo what is refused, and keep it" },
  ];
  const picked = await window.showQuickPick(modes.map((one) => ({ ...one, picked: one.label === settings.mode() })), { title: "Aegis: Mode" });
  if (picked) await settings.setMode(picked.label);
}

async function showStatus(desk: Desk): Promise<void> {
  const { state } = desk.connection;
  const choices: (vscode.QuickPickItem & { command?: string })[] = [
    { label: "$(checklist) Approvals", description: `${String(desk.pending.length)} wait`, command: "aegis.approvals.focus" },
    { label: "$(list-unordered) Audit", description: state.kind === "up" ? `${String(state.status.ledger.size)} entries` : "", command: "aegis.openAudit" },
    { label: "$(settings-gear) Mode", description: settings.mode(), command: "aegis.setMode" },
    { label: "$(archive) Refused saves", description: String(desk.shelf.list().length), command: "aegis.refused.focus" },
  ];
  if (state.kind !== "up") {
    const message = state.kind === "looking" ? "looking for the daemon" : state.message;
    choices.unshift({ label: "$(play) Start the daemon in a terminal", description: message, command: "aegis.startDaemon" });
  } else {
    const { advisory, problems, notCovered } = state.status;
    const notes = [...problems, ...(state.unjudged ? [state.unjudged] : []), ...advisory.map((why) => `Advisory: ${why}`), ...notCovered.map((what) => `Not covered: ${what}`)];
    choices.push({ label: "What holds, and what does not", kind: vscode.QuickPickItemKind.Separator }, ...notes.map((detail) => ({ label: "$(info)", description: detail })));
  }
  const picked = await window.showQuickPick(choices, { title: "Aegis" });
  if (picked?.command) await vscode.commands.executeCommand(picked.command);
}

async function auditFile(audit: Audit): Promise<void> {
  const uri = window.activeTextEditor?.document.uri;
  if (uri?.scheme !== "file") {
    void window.showInformationMessage("Aegis: no file is open");
    return;
  }
  audit.open(undefined, await realPath(uri.fsPath));
}

async function withKept(desk: Desk, chosen: unknown, then: (kept: Kept) => unknown): Promise<void> {
  const all = desk.shelf.list();
  const kept =
    chosenOf(chosen, all, (one) => one.id) ??
    (await pick("Refused saves", all, (one) => ({ label: path.basename(one.path), description: one.at, detail: one.message })));
  if (kept) await then(kept);
}

async function compare(kept: Kept): Promise<void> {
  const file = vscode.Uri.file(kept.path);
  const title = `${path.basename(kept.path)}: as it stands, and as it was refused`;
  const there = await vscode.workspace.fs.stat(file).then(() => true, () => false);
  if (there) await vscode.commands.executeCommand("vscode.diff", file, keptUri(kept), title);
  else await window.showTextDocument(keptUri(kept), { preview: true });
}

async function discard(desk: Desk, kept: Kept): Promise<void> {
  const gone = "Throw Away";
  const answer = await window.showWarningMessage(`The refused text of ${path.basename(kept.path)} will be gone for good.`, { modal: true }, gone);
  if (answer !== gone) return;
  desk.shelf.discard(kept.id);
  desk.touch();
}

function startDaemon(): void {
  const terminal = window.createTerminal("Aegis");
  terminal.show();
  // Typed, and started by whoever presses Enter: the folder is theirs to choose.
  terminal.sendText(`${settings.program()} up --config aegis.d`, false);
}
