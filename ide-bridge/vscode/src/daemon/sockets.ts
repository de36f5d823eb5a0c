// Where the daemon is: the same places in the same order as the `aegis` command looks. A socket in the user's own state folder
// that belongs to somebody else is refused: whoever put it there is not the user's daemon.

import { existsSync, statSync } from "node:fs";
import path from "node:path";

/** The control socket of a daemon under a user of its own. */
const SERVICE = "/run/aegis/control.sock";

/** The two sockets of one daemon. */
export interface Sockets {
  /** What people ask: status, approvals, the ledger. */
  control: string;
  /** What may be done: the kernel API. */
  kernel: string;
  /** Whether somebody named it, or it is the machine's; then another user may own it. */
  named: boolean;
}

/** What is at a socket's path. */
export type Place = { kind: "absent" } | { kind: "foreign"; message: string } | { kind: "there" };

/** The sockets by the setting, the environment, the user's state folder, or the machine's. */
export function findSockets(
  setting: string,
  env: Readonly<Record<string, string | undefined>>,
  exists: (file: string) => boolean = existsSync,
): Sockets {
  const named = setting.trim() || env["AEGIS_SOCKET"];
  if (named) return sockets(named.replace(/^~(?=\/)/, env["HOME"] ?? "~"), true);
  const base = env["XDG_STATE_HOME"] || (env["HOME"] ? path.join(env["HOME"], ".local/state") : ".");
  const state = env["AEGIS_STATE"] || path.join(base, "aegis");
  const own = path.join(state, "control.sock");
  return !exists(own) && exists(SERVICE) ? sockets(SERVICE, true) : sockets(own, false);
}

function sockets(control: string, named: boolean): Sockets {
  return { control, kernel: path.join(path.dirname(control), "kernel.sock"), named };
}

/** What is there, before anything is said to it. */
export function look(sockets: Sockets, uid: number | undefined): Place {
  const { control } = sockets;
  const found = statSync(control, { throwIfNoEntry: false });
  if (!found) return { kind: "absent" };
  if (!found.isSocket()) return { kind: "foreign", message: `${control} is not a socket` };
  if (!sockets.named && uid !== undefined && found.uid !== uid && found.uid !== 0) {
    return { kind: "foreign", message: `${control} belongs to another user (${String(found.uid)}); name it in aegis.socket if you trust it` };
  }
  return { kind: "there" };
}
