// Whether there is a daemon, what it is, and when something has changed. It is asked every two seconds, and its events make that
// sooner. What is not certainly the user's daemon is never shown as one.

import { Nonsense, type Status } from "./answers.ts";
import { Control, Judge, Refused } from "./client.ts";
import { listen, Unanswered } from "./http.ts";
import { look, type Sockets } from "./sockets.ts";

/** How it stands. */
export type State =
  | { kind: "looking" }
  | { kind: "away"; message: string }
  | { kind: "foreign"; message: string }
  | { kind: "old"; message: string }
  /** `unjudged` says why the kernel API does not answer this editor; empty if it does. */
  | { kind: "up"; status: Status; unjudged: string };

/** The oldest daemon that this extension understands. */
export const OLDEST: readonly [number, number, number] = [0, 1, 0];

const EVERY = 2_000;

/** Whether a version is older than the oldest that is understood; undefined for what is no version. */
export function isOld(version: string): boolean | undefined {
  const parts = /^(\d+)\.(\d+)\.(\d+)(?:[-+].*)?$/.exec(version)?.slice(1).map(Number);
  if (!parts) return undefined;
  const at = OLDEST.findIndex((wanted, index) => parts[index] !== wanted);
  return at >= 0 && (parts[at] ?? 0) < (OLDEST[at] ?? 0);
}

/** The connection to one daemon at a time. */
export class Connection {
  state: State = { kind: "looking" };
  readonly #find: () => Sockets;
  readonly #changed: () => void;
  #sockets: Sockets;
  #timer: NodeJS.Timeout | undefined;
  #deaf: (() => void) | undefined;
  #unjudged = "not asked yet";
  #listenAfter = 0;
  #asking = false;
  #again = false;
  #ended = false;
  #shown = "";

  /** `changed` is called when the state is another one, or the ledger has grown. */
  constructor(find: () => Sockets, changed: () => void) {
    this.#find = find;
    this.#sockets = find();
    this.#changed = changed;
  }

  get sockets(): Sockets {
    return this.#sockets;
  }

  get control(): Control {
    return new Control(this.#sockets.control);
  }

  get judge(): Judge {
    return new Judge(this.#sockets.kernel);
  }

  /** The status, if there is a daemon. */
  get status(): Status | undefined {
    return this.state.kind === "up" ? this.state.status : undefined;
  }

  start(): void {
    void this.refresh();
    this.#timer = setInterval(() => void this.refresh(), EVERY);
  }

  dispose(): void {
    this.#ended = true;
    clearInterval(this.#timer);
    this.#deaf?.();
  }

  /** Looks now. Calls during one are answered by one more. */
  async refresh(): Promise<void> {
    if (this.#asking) {
      this.#again = true;
      return;
    }
    this.#asking = true;
    try {
      do this.#settle(await this.#look());
      while (this.#isAskedAgain());
    } finally {
      this.#asking = false;
    }
  }

  #isAskedAgain(): boolean {
    const again = this.#again && !this.#ended;
    this.#again = false;
    return again;
  }

  async #look(): Promise<State> {
    const found = this.#find();
    if (found.control !== this.#sockets.control) this.#hush();
    this.#sockets = found;
    const place = look(found, process.getuid?.());
    if (place.kind === "absent") return { kind: "away", message: `nothing is at ${found.control}; start \`aegis up\`` };
    if (place.kind === "foreign") return place;
    try {
      const status = await this.control.status();
      const old = isOld(status.version);
      if (old === undefined) return { kind: "foreign", message: `${found.control} names no version` };
      if (old) return { kind: "old", message: `the daemon is ${status.version}; this extension needs ${OLDEST.join(".")} or newer` };
      this.#keepListening();
      return { kind: "up", status, unjudged: this.#unjudged };
    } catch (error) {
      if (error instanceof Unanswered) return { kind: "away", message: error.message };
      if (error instanceof Refused && error.status === 404) return { kind: "foreign", message: `${found.control} is not an Aegis daemon's` };
      if (error instanceof Refused) return { kind: "foreign", message: error.message };
      if (error instanceof Nonsense) return { kind: "foreign", message: `${found.control} is not an Aegis daemon's: ${error.message}` };
      throw error;
    }
  }

  #settle(state: State): void {
    if (this.#ended) return;
    if (state.kind !== "up") this.#hush();
    this.state = state;
    const shown = JSON.stringify(state);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#changed();
  }

  #hush(): void {
    this.#deaf?.();
    this.#deaf = undefined;
    this.#unjudged = "not asked yet";
    this.#listenAfter = 0;
  }

  /** Events are about this editor alone; that they come shows that the kernel API knows it. */
  #keepListening(): void {
    if (this.#deaf || Date.now() < this.#listenAfter) return;
    const soon = (): void => void this.refresh();
    this.#deaf = listen(this.#sockets.kernel, "/v1/events", {
      open: () => {
        this.#unjudged = "";
        soon();
      },
      event: soon,
      end: (why) => {
        this.#deaf = undefined;
        this.#unjudged = why;
        this.#listenAfter = Date.now() + 5_000;
        soon();
      },
    });
  }
}
