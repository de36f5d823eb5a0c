// The gate at saves. An editor lets nobody veto a save: before one, the daemon is asked; what it refuses is put on the shelf and the
// last allowed text is saved in its place; and after a save it is looked at what really was written. The verdict is the daemon's alone.
//
// Without a verdict nothing is allowed in `enforce`. The text is on the shelf before it is taken out of the editor, or it stays there.

import type { Verdict } from "../daemon/answers.ts";
import { UNANSWERED } from "../daemon/client.ts";
import { type Kept, nameOf } from "./shelf.ts";

/** FailSafe's three: ask nothing; ask and tell; ask, tell and undo. */
export type Mode = "observe" | "assist" | "enforce";

/** What the gate needs of its surroundings. */
export interface Surroundings {
  mode: () => Mode;
  /** Asks the daemon; never throws, and never takes longer than its patience. */
  ask: (path: string, text: string, mode: "assist" | "enforce") => Promise<Verdict>;
  /** Asks what would be said, without any effect; undefined where nobody says. */
  preview: (path: string, text: string, mode: "assist" | "enforce") => Promise<Verdict | undefined>;
  report: (decision: string, result: "success" | "failure") => void;
  /** Keeps a refused text; throws if it cannot. */
  keep: (kept: Omit<Kept, "id">) => Kept;
  /** What git is doing around this file. */
  git: (path: string) => string | undefined;
  now: () => Date;
}

/** What was refused, and what becomes of it. */
export interface Refusal {
  path: string;
  verdict: Verdict;
  /** The text on the shelf. */
  kept: Kept | undefined;
  /** What stood there before. */
  before: string | undefined;
  /** Why the refused text stands all the same; undefined if it is undone. */
  stands: string | undefined;
}

/** What is to happen before a save. */
export type Before =
  | { kind: "go" }
  /** `to` is to be saved instead; if it is undefined there was nothing before, and the file goes once it is written. */
  | { kind: "refused"; refusal: Refusal; to: string | undefined };

/** What is to happen after a save. What `stands` is to be told, unless it was before. */
export type After = { kind: "done" } | { kind: "stands"; refusal: Refusal } | { kind: "refused"; refusal: Refusal; to: string | undefined };

/** A question's answer for one text, kept until that text is saved or replaced by another. */
interface Asked {
  name: string;
  verdict: Verdict;
  refusal: Refusal | undefined;
  at: number;
}

/** For how long an answer that came before a save counts for what was written by it. Milliseconds. */
const FRESH = 5_000;

/** The gate of one window. */
export class Gate {
  readonly #around: Surroundings;
  /** The last allowed text; undefined for a file that was not there. */
  readonly #allowed = new Map<string, string | undefined>();
  readonly #asked = new Map<string, Asked>();
  /** Names of refused texts: a file that is read again never makes one of them an allowed one. */
  readonly #refused = new Set<string>();

  constructor(around: Surroundings) {
    this.#around = around;
  }

  /** A file as it stands on disk, when it is opened or was changed by others than this editor. */
  onDisk(path: string, text: string | undefined): void {
    if (text !== undefined && this.#refused.has(nameOf(path, text)) && this.#allowed.has(path)) return;
    this.#allowed.set(path, text);
  }

  /** The last allowed text. */
  allowed(path: string): string | undefined {
    return this.#allowed.get(path);
  }

  /** Whether it is known how this file stood. */
  knows(path: string): boolean {
    return this.#allowed.has(path);
  }

  forget(path: string): void {
    this.#allowed.delete(path);
    this.#drop(path);
  }

  /** Asks what would be said while nobody saves. It decides nothing: a save is judged by itself. */
  async pause(path: string, text: string): Promise<Refusal | undefined> {
    const mode = this.#around.mode();
    if (mode === "observe" || text === this.#allowed.get(path)) return undefined;
    const verdict = await this.#around.preview(path, text, mode);
    if (verdict === undefined || verdict.allowed) return undefined;
    return { path, verdict, kept: undefined, before: this.#allowed.get(path), stands: "it is not saved yet" };
  }

  /** Judges a text that is about to be saved. */
  async before(path: string, text: string): Promise<Before> {
    const mode = this.#around.mode();
    if (mode === "observe" || text === this.#allowed.get(path)) return { kind: "go" };
    // Whoever waits for an approval may have it by now: then the answer is another one.
    if (this.#asked.get(path)?.verdict.approval !== undefined) this.#drop(path);
    const asked = await this.#ask(path, text, mode);
    if (asked.verdict.allowed || isMissed(asked.verdict, mode)) return { kind: "go" };
    return this.#refuse(path, text, asked, mode);
  }

  /** Looks at what a save has written. It is judged now if it is not what was judged before, as when a formatter came later. */
  async after(path: string, text: string): Promise<After> {
    const mode = this.#around.mode();
    if (mode === "observe") {
      this.#drop(path);
      this.#allowed.set(path, text);
      return { kind: "done" };
    }
    if (this.knows(path) && text === this.#allowed.get(path)) {
      this.#drop(path);
      return { kind: "done" };
    }
    const asked = await this.#ask(path, text, mode);
    if (asked.verdict.allowed) {
      this.#asked.delete(path);
      this.#allowed.set(path, text);
      if (asked.verdict.decision !== undefined) this.#around.report(asked.verdict.decision, "success");
      return { kind: "done" };
    }
    this.#asked.delete(path);
    if (isMissed(asked.verdict, mode)) return { kind: "done" };
    const told = asked.refusal !== undefined;
    const { refusal, to } = this.#refuse(path, text, asked, mode);
    if (refusal.stands !== undefined) return told ? { kind: "done" } : { kind: "stands", refusal };
    return { kind: "refused", refusal, to };
  }

  async #ask(path: string, text: string, mode: "assist" | "enforce"): Promise<Asked> {
    const name = nameOf(path, text);
    const earlier = this.#asked.get(path);
    const now = this.#around.now().getTime();
    if (earlier?.name === name && now - earlier.at < FRESH) return earlier;
    this.#drop(path);
    const verdict = await this.#around.ask(path, text, mode);
    const asked = { name, verdict, refusal: undefined, at: now };
    this.#asked.set(path, asked);
    if (!verdict.allowed) this.#refused.add(name);
    else this.#refused.delete(name);
    return asked;
  }

  #refuse(path: string, text: string, asked: Asked, mode: "assist" | "enforce"): { kind: "refused"; refusal: Refusal; to: string | undefined } {
    const before = this.#allowed.get(path);
    const refusal = asked.refusal ?? this.#keep(path, text, asked.verdict, before);
    asked.refusal = refusal;
    if (mode === "assist") refusal.stands = "Aegis assists and undoes nothing";
    else {
      const git = this.#around.git(path);
      if (git !== undefined) refusal.stands = `${git} is under way`;
      else if (!this.knows(path)) refusal.stands = "it is not known how the file stood before";
    }
    return { kind: "refused", refusal, to: before };
  }

  #keep(path: string, text: string, verdict: Verdict, before: string | undefined): Refusal {
    const { reason, message, approval, index } = verdict;
    try {
      const kept = this.#around.keep({ path, text, at: this.#around.now().toISOString(), reason, message, approval, index });
      return { path, verdict, kept, before, stands: undefined };
    } catch (error) {
      // What cannot be kept is not taken away.
      const why = error instanceof Error ? error.message : String(error);
      return { path, verdict, kept: undefined, before, stands: `the refused text cannot be kept elsewhere (${why})` };
    }
  }

  /** An answer that no save has used: the write has not happened. */
  #drop(path: string): void {
    const asked = this.#asked.get(path);
    this.#asked.delete(path);
    if (asked?.verdict.decision !== undefined && asked.verdict.allowed) this.#around.report(asked.verdict.decision, "failure");
  }
}

/** Where Aegis only assists, a daemon that is away is shown in the status bar and not at every save. */
function isMissed(verdict: Verdict, mode: Mode): boolean {
  return mode === "assist" && verdict.reason === UNANSWERED;
}

/** The first line in which two texts differ. */
export function firstDifference(before: string, after: string): number {
  const [old, fresh] = [before.split("\n"), after.split("\n")];
  const at = fresh.findIndex((line, index) => line !== old[index]);
  return Math.max(0, Math.min(at < 0 ? fresh.length - 1 : at, old.length - 1));
}
