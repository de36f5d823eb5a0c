// Whether git is in the middle of something. Then files change for its sake, and nothing is restored under its hands.

import { existsSync, readFileSync, statSync } from "node:fs";
import path from "node:path";

/** What stands in a git directory while an operation is under way, and what it is. */
const SIGNS: readonly (readonly [string, string])[] = [
  ["index.lock", "a git command"],
  ["rebase-merge", "a rebase"],
  ["rebase-apply", "a rebase or `git am`"],
  ["MERGE_HEAD", "a merge"],
  ["CHERRY_PICK_HEAD", "a cherry-pick"],
  ["REVERT_HEAD", "a revert"],
  ["BISECT_LOG", "a bisection"],
];

/** The git directory of the work tree that `file` is in. */
export function gitDirectory(file: string): string | undefined {
  for (let folder = path.dirname(file); ; folder = path.dirname(folder)) {
    const dot = path.join(folder, ".git");
    const found = statSync(dot, { throwIfNoEntry: false });
    if (found?.isDirectory()) return dot;
    if (found?.isFile()) {
      // A linked work tree, or a submodule.
      const named = /^gitdir: (.+)$/m.exec(readFileSync(dot, "utf8"))?.[1];
      return named === undefined ? undefined : path.resolve(folder, named);
    }
    if (folder === path.dirname(folder)) return undefined;
  }
}

/** What git is doing in the work tree of `file`; undefined if nothing. */
export function gitOperation(file: string): string | undefined {
  try {
    const directory = gitDirectory(file);
    if (directory === undefined) return undefined;
    return SIGNS.find(([name]) => existsSync(path.join(directory, name)))?.[1];
  } catch {
    // A git directory that cannot be read shows no operation.
    return undefined;
  }
}
