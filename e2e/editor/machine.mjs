// What the test runs: a daemon, an editor, a browser, each in a folder that is taken away at the end. Each is ended by its own id.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";

const { AEGIS_BIN, EDITOR_FOLDER, VSIX } = process.env;
const { chromium } = createRequire(path.join(EDITOR_FOLDER, "package.json"))("playwright-core");

/** Waits for a condition; fails after a deadline, saying what was waited for. */
export async function until(what, condition, seconds = 30) {
  const deadline = Date.now() + seconds * 1000;
  let last;
  for (;;) {
    try {
      last = await condition();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`waited ${seconds} s in vain: ${what}; last: ${String(last)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const CONFIG = `
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: desk}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: ${process.getuid()}}}}
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: {name: default}
spec: {approvalsAtL3: 1}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: editor}
spec:
  match: {servers: [editor]}
  rules:
    - {name: files, effect: allow, methods: [file.write]}
    - name: no-keys
      effect: deny
      methods: [file.write]
      when: [{argument: $.content, operator: matches, value: "AKIA[0-9A-Z]{16}"}]
      reason: Keys of cloud accounts do not belong in files.
    - name: deployment
      effect: require_approval
      methods: [file.write]
      when: [{argument: $.path, operator: matches, value: "/deploy/"}]
      reason: A person looks at every change of the deployment.
`;

/** A folder with everything, and what runs in it. */
export class Machine {
  #folder = mkdtempSync(path.join(tmpdir(), "aegis-editor-"));
  #running = new Set();

  constructor() {
    for (const name of ["config", "user/Machine", "user/User", "extensions", "home"]) mkdirSync(this.at(name), { recursive: true });
    writeFileSync(this.at("config/all.yaml"), CONFIG);
  }

  at(...parts) {
    return path.join(this.#folder, ...parts);
  }

  #spawn(program, args, env, onLine = () => {}) {
    const child = spawn(program, args, { env, cwd: this.#folder, stdio: ["ignore", "pipe", "pipe"] });
    this.#running.add(child);
    child.said = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (text) => {
        child.said = (child.said + text).slice(-20_000);
        onLine(child.said);
      });
    }
    child.ended = new Promise((resolve) => child.on("exit", resolve));
    child.ended.then(() => this.#running.delete(child));
    return child;
  }

  async daemon() {
    const env = { ...process.env, HOME: this.at("home") };
    delete env.AEGIS_SOCKET;
    const child = this.#spawn(AEGIS_BIN, ["up", "--config", this.at("config"), "--state", this.at("state"), "--admin", "127.0.0.1:0"], env);
    child.ended.then((code) => code && console.error(child.said));
    await until("the daemon's sockets", () => existsSync(this.at("state/control.sock")) && existsSync(this.at("state/kernel.sock")));
    return child;
  }

  /** Asks the control socket, beside the extension. */
  control(path) {
    return new Promise((resolve, reject) => {
      const request = http.get({ socketPath: this.at("state/control.sock"), path, headers: { host: "localhost" } }, async (response) => {
        const body = (await response.setEncoding("utf8").toArray()).join("");
        if (response.statusCode === 200) resolve(JSON.parse(body));
        else reject(new Error(`${path}: ${response.statusCode} ${body}`));
      });
      request.on("error", reject);
    });
  }

  async end(child) {
    child.kill("SIGINT");
    const killed = setTimeout(() => child.kill("SIGKILL"), 10_000);
    await child.ended;
    clearTimeout(killed);
  }

  #editor = [path.join(EDITOR_FOLDER, "node_modules/code-server/out/node/entry.js"), "--user-data-dir", this.at("user"), "--extensions-dir", this.at("extensions")];

  #editorEnv() {
    // The editor is no part of whatever runs this test.
    const { PATH, LANG } = process.env;
    return { PATH, LANG, HOME: this.at("home"), TMPDIR: process.env.TMPDIR ?? "" , XDG_CONFIG_HOME: this.at("home/config") };
  }

  install() {
    execFileSync(process.execPath, [...this.#editor, "--install-extension", VSIX], { env: this.#editorEnv(), stdio: "pipe" });
  }

  /** Starts the editor's server; resolves to its address. */
  async serve(folder) {
    let address;
    const args = ["--auth", "none", "--bind-addr", "127.0.0.1:0", "--disable-telemetry", "--disable-update-check", "--disable-workspace-trust", "--disable-getting-started-override", folder];
    this.#spawn(process.execPath, [...this.#editor, ...args], this.#editorEnv(), (said) => {
      address ??= /HTTP server listening on (http:\S+?)\/?\s/.exec(said)?.[1];
    });
    return await until("the editor's server", () => address);
  }

  async browse() {
    this.browser = await chromium.launch({
      executablePath: "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    });
    return await this.browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "dark" });
  }

  async clean() {
    await this.browser?.close();
    for (const child of [...this.#running]) await this.end(child);
    if (!process.env.AEGIS_KEEP) rmSync(this.#folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
    else console.error(`kept: ${this.#folder}`);
  }
}
