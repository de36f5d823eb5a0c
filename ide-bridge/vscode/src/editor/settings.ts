// The settings. All of them are the user's and the machine's: a repository that is opened cannot change them.

import * as vscode from "vscode";

import type { Mode } from "../gate/gate.ts";

const of = (): vscode.WorkspaceConfiguration => vscode.workspace.getConfiguration("aegis");

/** The mode; a word that is none of the three is the strictest. */
export function mode(): Mode {
  const word = of().get<string>("mode", "observe");
  return word === "observe" || word === "assist" ? word : "enforce";
}

export async function setMode(mode: Mode): Promise<void> {
  await of().update("mode", mode, vscode.ConfigurationTarget.Global);
}

export const socket = (): string => of().get("socket", "");
export const whileTyping = (): boolean => of().get("askWhileTyping", true);
export const program = (): string => of().get("program", "aegis");
