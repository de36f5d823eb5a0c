// The lists at the side: what waits, who acts, what was decided, what was refused here.

import path from "node:path";
import * as vscode from "vscode";

import { type Approval, type Entry, maybe, shortName, type Trust } from "../daemon/answers.ts";
import type { Kept } from "../gate/shelf.ts";
import type { Desk } from "./desk.ts";
import { approvalText, entryLine, left, subject } from "./words.ts";

/** A line of a list, and what it stands for. */
export class Line<T> extends vscode.TreeItem {
  readonly of: T;

  constructor(label: string, of: T) {
    super(label);
    this.of = of;
  }
}

/** A path as it is called in this window. */
export const shortPath = (target: string): string => (path.isAbsolute(target) ? vscode.workspace.asRelativePath(target) : target);

class Lines<T> implements vscode.TreeDataProvider<Line<T>> {
  readonly onDidChangeTreeData: vscode.Event<void>;
  readonly #read: () => Line<T>[];

  constructor(desk: Desk, read: () => Line<T>[]) {
    this.onDidChangeTreeData = desk.onChange;
    this.#read = read;
  }

  getTreeItem(line: Line<T>): vscode.TreeItem {
    return line;
  }

  getChildren(line?: Line<T>): Line<T>[] {
    return line ? [] : this.#read();
  }
}

const icon = (name: string, color?: string): vscode.ThemeIcon => new vscode.ThemeIcon(name, color === undefined ? undefined : new vscode.ThemeColor(color));

function approvalLine(approval: Approval): Line<Approval> {
  const { verb, target } = subject(approval);
  const line = new Line(shortPath(target), approval);
  const pending = approval.state === "pending";
  line.description = `${verb} · ${shortName(approval.agent)} · risk ${String(approval.risk)} · ${pending ? left(approval.expiresAt, new Date()) : approval.state}`;
  line.tooltip = approvalText(approval).slice(0, 4_000);
  line.contextValue = pending ? "pending" : "settled";
  const looks: Record<string, vscode.ThemeIcon> = {
    pending: icon("bell", "notificationsWarningIcon.foreground"),
    approved: icon("check", "testing.iconPassed"),
    denied: icon("close", "testing.iconFailed"),
  };
  line.iconPath = looks[approval.state] ?? icon("history");
  line.command = { title: "Show", command: "aegis.showApproval", arguments: [approval.id] };
  return line;
}

function agentLine(trust: Trust, self: string | undefined): Line<Trust> {
  const line = new Line(shortName(trust.agent), trust);
  line.description = `trust ${String(trust.score)} · ${trust.standing}${trust.quarantined ? " · stopped" : ""}${trust.agent === self ? " · this editor" : ""}`;
  line.tooltip = `${trust.agent}\nStage ${trust.stage}; ${String(trust.belowCritical)} of 1000 that the trust is below the critical one`;
  line.contextValue = trust.quarantined ? "stopped" : "acting";
  line.iconPath = trust.quarantined ? icon("debug-stop", "testing.iconFailed") : icon("person");
  return line;
}

function decisionLine(entry: Entry): Line<Entry> {
  const told = entryLine(entry);
  const line = new Line(shortPath(told.target) || told.verb, entry);
  line.description = `${told.verb} · ${told.who} · ${told.result}`;
  line.tooltip = `${told.what}\nEntry ${String(entry.index)}: ${told.result}, ${told.why}\n${maybe(entry.entry, "timestamp") ?? ""}`;
  const looks: Record<string, vscode.ThemeIcon> = {
    allow: icon("pass", "testing.iconPassed"),
    deny: icon("error", "testing.iconFailed"),
    require_approval: icon("bell", "notificationsWarningIcon.foreground"),
  };
  line.iconPath = looks[told.result] ?? icon("circle-outline");
  line.command = { title: "Show", command: "aegis.openAudit", arguments: [entry.index] };
  return line;
}

function keptLine(kept: Kept): Line<Kept> {
  const line = new Line(path.basename(kept.path), kept);
  line.description = kept.message;
  line.tooltip = `${kept.path}\nRefused ${kept.at}: ${kept.message} (${kept.reason})`;
  line.contextValue = "kept";
  line.iconPath = icon("archive");
  line.command = { title: "Compare", command: "aegis.compareRefused", arguments: [kept.id] };
  return line;
}

/** Shows the lists. */
export function showLists(desk: Desk): vscode.Disposable {
  const show = <T>(id: string, read: () => Line<T>[]): vscode.TreeView<Line<T>> =>
    vscode.window.createTreeView(id, { treeDataProvider: new Lines(desk, read) });
  const order = (approval: Approval): number => (approval.state === "pending" ? 0 : 1);
  const approvals = show("aegis.approvals", () => desk.approvals.toSorted((a, b) => order(a) - order(b)).map(approvalLine));
  const count = (): void => {
    const waiting = desk.pending.length;
    approvals.badge = waiting ? { value: waiting, tooltip: `${String(waiting)} wait for a person` } : undefined;
  };
  count();
  return vscode.Disposable.from(
    approvals,
    desk.onChange(count),
    show("aegis.agents", () => desk.trust.map((trust) => agentLine(trust, desk.self?.agent))),
    show("aegis.decisions", () => desk.decisions.map(decisionLine)),
    show("aegis.refused", () => desk.shelf.list().map(keptLine)),
  );
}
