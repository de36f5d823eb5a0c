/** A real daemon over a temporary folder. `AEGIS_BIN` names the program. */

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const AEGIS = process.env["AEGIS_BIN"] ?? "aegis";

const CONFIG = `
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: bot}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: ${process.getuid?.()}}}}
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: {name: all}
spec: {tMin: 1, tau: 1000, approvalsAtL3: 1}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: shop}
spec:
  match: {servers: [shop]}
  rules:
    - {name: read, effect: allow, tools: [read_query, add]}
    - {name: ask, effect: require_approval, tools: [write_query], reason: Changes need a human.}
    - name: never-drop
      effect: deny
      reason: Tables are never dropped.
      when: [{argument: $.query, operator: matches, value: '(?i)\\bdrop\\s+table\\b'}]
`;

export interface Entry {
  readonly decision_id?: string;
  readonly result: string;
  readonly reason?: string;
  readonly action: Record<string, string>;
  readonly arguments?: unknown;
}

/** `aegis up`, which can be ended and started again. */
export class Daemon {
  readonly folder = mkdtempSync(join(tmpdir(), "aegis-"));
  readonly state = join(this.folder, "state");
  readonly socket = join(this.state, "kernel.sock");
  #process: ChildProcess | undefined;

  static async start(): Promise<Daemon> {
    const daemon = new Daemon();
    mkdirSync(join(daemon.folder, "aegis.d"));
    writeFileSync(join(daemon.folder, "aegis.d", "all.yaml"), CONFIG);
    await daemon.up();
    return daemon;
  }

  async up(): Promise<void> {
    const out = openSync(join(this.folder, "out"), "w");
    const log = openSync(join(this.folder, "log"), "a");
    const config = join(this.folder, "aegis.d");
    const args = ["up", "--config", config, "--state", this.state, "--admin", "127.0.0.1:0"];
    this.#process = spawn(AEGIS, [...args, "--kernel-address", "127.0.0.1:0"], { stdio: ["ignore", out, log] });
    closeSync(out);
    closeSync(log);
    await until("the daemon answers", () => this.run(["status"]).status === 0);
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const ending = this.#process;
    this.#process = undefined;
    if (ending === undefined) return;
    const ended = new Promise((resolve) => ending.once("exit", resolve));
    ending.kill(signal);
    await ended;
  }

  async end(): Promise<void> {
    await this.stop();
    rmSync(this.folder, { recursive: true });
  }

  get url(): string {
    const lines = readFileSync(join(this.folder, "out"), "utf8").split("\n");
    const line = lines.map((line) => line.trim().split(/\s+/)).find(([name, at]) => name === "kernel" && at?.startsWith("http"));
    return line?.[1] ?? "";
  }

  run(args: string[]) {
    const env = { ...process.env, AEGIS_SOCKET: join(this.state, "control.sock") };
    return spawnSync(AEGIS, args, { encoding: "utf8", env });
  }

  /** The newest last. */
  entries(kind: string): Entry[] {
    const done = this.run(["audit", "query", "--kind", kind, "--limit", "10000", "-o", "json"]);
    const lines = done.stdout.split("\n").filter((line) => line !== "");
    return lines.map((line) => (JSON.parse(line) as { entry: Entry }).entry).reverse();
  }

  /** What is recorded of how a decision's action ended; waits for the first. */
  async outcomes(decision: string | undefined): Promise<string[]> {
    const own = () => this.entries("outcome").filter((entry) => entry.decision_id === decision);
    await until("an outcome is recorded", () => own().length > 0);
    return own().map((entry) => entry.result);
  }
}

export async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + 60_000;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`timed out: ${what}`);
    await sleep(50);
  }
}
