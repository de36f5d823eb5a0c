// What the window knows: the connection, and what was read from it since it last changed. Everything that is shown comes from here.

import path from "node:path";
import * as vscode from "vscode";

import { type Approval, type Entry, maybe, type Trust } from "../daemon/answers.ts";
import { Refused } from "../daemon/client.ts";
import { Connection } from "../daemon/connection.ts";
import { findSockets } from "../daemon/sockets.ts";
import { Shelf } from "../gate/shelf.ts";
import * as settings from "./settings.ts";
import type { Self } from "./words.ts";

/** The window's desk. */
export class Desk {
  approvals: Approval[] = [];
  trust: Trust[] = [];
  decisions: Entry[] = [];
  self: Self | undefined;
  readonly connection: Connection;
  readonly shelf: Shelf;
  readonly log: vscode.LogOutputChannel;
  readonly #changed = new vscode.EventEmitter<void>();
  /** When anything that is shown may be another. */
  readonly onChange = this.#changed.event;
  #reading: Promise<void> | undefined;
  #again = false;

  /** The folder that the editor keeps its settings in. */
  readonly editorFolder: string;

  /** `storage` is the extension's own folder: `User/globalStorage/…` in the editor's. */
  constructor(storage: string, log: vscode.LogOutputChannel) {
    this.shelf = new Shelf(path.join(storage, "refused"));
    this.editorFolder = path.resolve(storage, "../../..");
    this.log = log;
    this.connection = new Connection(
      () => findSockets(settings.socket(), process.env),
      () => void this.read(),
    );
  }

  dispose(): void {
    this.connection.dispose();
    this.#changed.dispose();
  }

  /** Says that something is to be shown anew. */
  touch(): void {
    this.#changed.fire();
  }

  /** Reads everything anew; calls during one are answered by one more. */
  async read(): Promise<void> {
    this.#again = true;
    this.#reading ??= this.#readAll().finally(() => {
      this.#reading = undefined;
    });
    await this.#reading;
  }

  async #readAll(): Promise<void> {
    while (this.#again) {
      this.#again = false;
      if (this.connection.status) {
        const { control } = this.connection;
        try {
          const page = { limit: 50, kind: "decision" };
          const self = this.connection.judge.self();
          const [approvals, trust, entries, told] = await Promise.all([control.approvals(), control.trust(), control.entries(page), self]);
          [this.approvals, this.trust, this.decisions] = [approvals, trust, entries.entries];
          if (told) this.self = { agent: told.agent, tier: told.tier, told };
          else {
            if (this.self?.told) this.self = undefined;
            this.#recognise();
          }
        } catch (error) {
          this.log.warn(`reading failed: ${String(error)}`);
        }
      } else {
        // What was true of a daemon that is gone is not shown as if it still were.
        [this.approvals, this.trust, this.decisions] = [[], [], []];
        if (this.self?.told) this.self = undefined;
      }
      this.#changed.fire();
    }
  }

  /** Which agent this editor is to a daemon that does not say: the one whom its own questions were recorded under. */
  known(entry: Record<string, unknown>): void {
    const agent = maybe(entry, "agent_id");
    if (agent === undefined || this.self?.told) return;
    this.self = { agent, tier: maybe(entry, "tier") ?? this.self?.tier, told: undefined };
  }

  #recognise(): void {
    const { status } = this.connection;
    const only = status?.agents.length === 1 ? status.agents[0]?.id : undefined;
    if (this.self === undefined && only !== undefined) this.self = { agent: only, tier: undefined, told: undefined };
    const own = this.decisions.find(({ entry }) => entry["agent_id"] === this.self?.agent);
    if (own) this.known(own.entry);
  }

  get pending(): Approval[] {
    return this.approvals.filter((approval) => approval.state === "pending");
  }

  /** Orders something, with a one-time code where the daemon asks for one. Returns whether it was done. */
  async order(what: string, send: (totp: string | undefined) => Promise<unknown>, mfa = false): Promise<boolean> {
    let totp = mfa ? await askCode(what) : undefined;
    if (mfa && totp === undefined) return false;
    for (;;) {
      try {
        await send(totp);
        await this.connection.refresh();
        await this.read();
        return true;
      } catch (error) {
        if (error instanceof Refused && error.wantsCode && totp === undefined) {
          totp = await askCode(what);
          if (totp === undefined) return false;
          continue;
        }
        const message = error instanceof Error ? error.message : String(error);
        this.log.error(`${what}: ${message}`);
        void vscode.window.showErrorMessage(`Aegis: ${what}: ${message}`);
        return false;
      }
    }
  }
}

async function askCode(what: string): Promise<string | undefined> {
  return vscode.window.showInputBox({
    title: `Aegis: ${what}`,
    prompt: "The one-time code of your second factor",
    placeHolder: "123456",
    ignoreFocusOut: true,
    validateInput: (text) => (/^\d{6,8}$/.test(text.trim()) ? undefined : "six to eight digits"),
  });
}
