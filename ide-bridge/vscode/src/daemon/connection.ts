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
/** How soon after an event it is looked again, at most: many at once are one. Milliseconds. */
const SOON = 100;
/** How soon a stream that ended is asked for again. Milliseconds. */
const RETRY = 5_000;

/** A stream of events, asked for again while it is wanted. */
class Ear {
  #deaf: (() => void) | undefined;
  #listenAfter = 0;

  /** Listens, unless it does already or has ended a moment ago. */
  keep(socket: string, open: () => void, event: () => void, end: (why: string) => void): void {
    if (this.#deaf || Date.now() < this.#listenAfter) return;
    this.#deaf = listen(socket, "/v1/events", {
      open,
      event,
      end: (why) => {
        this.#deaf = undefined;
        this.#listenAfter = Date.now() + RETRY;
        end(why);
      },
    });
  }

  hush(): void {
    this.#deaf?.();
    this.#deaf = undefined;
    this.#listenAfter = 0;
  }
}

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
  /** What is recorded about this editor; that it may listen shows that the kernel API knows it. */
  readonly #own = new Ear();
  /** What is recorded about everybody, for operators. Without it, changes are seen when it is looked again. */
  readonly #all = new Ear();
  #soon: NodeJS.Timeout | undefined;
  #unjudged = "not asked yet";
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
    clearTimeout(this.#soon);
    this.#own.hush();
    this.#all.hush();
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
    this.#own.hush();
    this.#all.hush();
    this.#unjudged = "not asked yet";
  }

  #lookSoon(): void {
    if (this.#ended) return;
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      void this.refresh();
    }, SOON);
  }

  #keepListening(): void {
    const soon = (): void => { this.#lookSoon(); };
    const now = (): void => void this.refresh();
    const open = (): void => {
      this.#unjudged = "";
      now();
    };
    this.#own.keep(this.#sockets.kernel, open, soon, (why) => {
      this.#unjudged = why;
      now();
    });
    this.#all.keep(this.#sockets.control, soon, soon, soon);
  }
}
