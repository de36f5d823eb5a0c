// What all pages share: the session, the daemon's status, what waits, and whether the stream is live.

import { Api, type Approval, Away, Refused, type Status, type Trust } from "./api.ts";
import { failure } from "./words.ts";

export type Line = "connecting" | "live" | "away";

/** A session's view of the daemon. */
export class Desk {
  readonly api: Api;
  readonly readOnly: boolean;
  status = $state.raw<Status>();
  approvals = $state.raw<Approval[]>([]);
  trust = $state.raw<Trust[]>([]);
  line = $state<Line>("connecting");
  problem = $state("");
  /** Grows with the ledger. */
  beat = $state(0);
  now = $state(Date.now());
  readonly waiting = $derived(this.approvals.filter((one) => one.state === "pending"));
  readonly #end = new AbortController();
  readonly #ended: (why: string) => void;
  #due: ReturnType<typeof setTimeout> | undefined;

  constructor(api: Api, readOnly: boolean, ended: (why: string) => void) {
    this.api = api;
    this.readOnly = readOnly;
    this.#ended = ended;
  }

  /** Follows the daemon until `stop`. */
  start(): void {
    void this.refresh();
    void this.#follow();
    // Approvals expire, policies are reloaded and the clock goes on without an entry about an agent.
    const timer = setInterval(() => void this.refresh(), 5_000);
    const clock = setInterval(() => (this.now = Date.now()), 1_000);
    this.#end.signal.addEventListener("abort", () => {
      clearInterval(timer);
      clearInterval(clock);
      clearTimeout(this.#due);
    });
  }

  stop(): void {
    this.#end.abort();
  }

  /** Asks for everything that is shown beside the ledger. */
  refresh = async (): Promise<void> => {
    try {
      const [status, approvals, trust] = await Promise.all([this.api.status(), this.api.approvals(), this.api.trust()]);
      const grown = status.ledger.size !== this.status?.ledger.size;
      [this.status, this.approvals, this.trust, this.problem] = [status, approvals, trust, ""];
      if (grown) this.beat += 1;
    } catch (error) {
      this.failed(error);
    }
  };

  /** Says what went wrong; a session that has ended is left. */
  failed(error: unknown): void {
    if (this.#end.signal.aborted) return;
    if (error instanceof Refused && error.status === 401) this.#ended(error.message);
    else this.problem = error instanceof Away ? "The daemon does not answer. What is shown may be old." : failure(error);
  }

  /** A burst of entries is one look. */
  #soon(): void {
    this.#due ??= setTimeout(() => {
      this.#due = undefined;
      void this.refresh();
    }, 150);
  }

  async #follow(): Promise<void> {
    const { signal } = this.#end;
    while (!signal.aborted) {
      try {
        await this.api.events(signal, (opened) => {
          if (opened) this.line = "live";
          this.#soon();
        });
      } catch (error) {
        if (error instanceof Refused) this.failed(error);
      }
      this.line = "away";
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}
