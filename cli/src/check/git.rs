//! What git is about to commit or to push, asked of git itself by its plumbing, whose form no configuration changes.
//!
//! Objects are taken as they are stored: no replacement, no filter and no rename detection stands between what is
//! judged and what is committed.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read, Seek as _, Write as _},
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::{Change, Source, content::Content};

/// How files that differ are told: one form, whatever is configured.
const FORM: [&str; 8] = [
    "--raw",
    "-z",
    "-r",
    "--no-renames",
    "--no-abbrev",
    "--no-ext-diff",
    "--no-relative",
    "--ignore-submodules=none",
];

/// Why git does not tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// It does not run.
    #[error("git cannot be run: {0}; is it installed?")]
    Start(io::Error),
    /// It refuses.
    #[error("`git {what}` failed: {why}")]
    Failed {
        /// What was asked.
        what: String,
        /// Git's own words.
        why: String,
    },
    /// An answer in another form.
    #[error("the answer of `git {0}` is not understood; is it git 2.28 or newer?")]
    Foreign(&'static str),
    /// A range that is none.
    #[error("`{0}` is no range of commits; give A..B, such as origin/main..HEAD")]
    Range(String),
}

/// Git in the current folder: in a hook, of the repository and the index that its environment names. What is being
/// judged may hold a repository of its own whose configuration names commands; none is run, and no such repository
/// is taken for the one that is asked about.
fn git() -> Command {
    let mut git = Command::new("git");
    git.args(["-c", "core.fsmonitor=false", "-c", "safe.bareRepository=explicit"]);
    git.env("GIT_NO_REPLACE_OBJECTS", "1").env("GIT_GRAFT_FILE", "/dev/null");
    git.env("GIT_NO_LAZY_FETCH", "1").env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
    git.stdin(Stdio::null());
    git
}

fn ask<S: AsRef<OsStr>>(
    mut git: Command,
    what: &'static str,
    args: impl IntoIterator<Item = S>,
) -> Result<Vec<u8>, GitError> {
    let output = git.arg(what).args(args).output().map_err(GitError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let why = told.lines().next().unwrap_or("it did not say why").trim_start_matches("fatal: ");
    Err(GitError::Failed { what: what.into(), why: why.into() })
}

/// The one path that a command of git's answers with.
pub(crate) fn line_in(folder: Option<&Path>, args: &[&'static str]) -> Result<PathBuf, GitError> {
    let mut git = git();
    if let Some(folder) = folder {
        git.current_dir(folder);
    }
    let (what, args) = args.split_first().ok_or(GitError::Foreign("nothing"))?;
    let mut answer = ask(git, what, args)?;
    if answer.pop() != Some(b'\n') {
        return Err(GitError::Foreign(what));
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(answer)))
}

/// The folder that the files of the repository are in.
pub(super) fn work_tree() -> Result<PathBuf, GitError> {
    line_in(None, &["rev-parse", "--show-toplevel"])
}

/// The names of what git tracks or would track below a folder; `None` where there is no work tree.
pub(super) fn listed(folder: &Path) -> Option<Vec<Vec<u8>>> {
    let mut git = git();
    git.current_dir(folder).env_remove("GIT_DIR").env_remove("GIT_INDEX_FILE");
    let args = ["-z", "--cached", "--others", "--exclude-standard"];
    let listed = ask(git, "ls-files", args).ok()?;
    let names = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Some(names.map(<[u8]>::to_vec).collect())
}

/// What the next commit would change.
pub(super) fn staged() -> Result<Vec<Change>, GitError> {
    let tree = match ask(git(), "rev-parse", ["--verify", "--quiet", "HEAD^{tree}"]) {
        Ok(_) => "HEAD".to_owned(),
        // The first commit: everything is new. A branch that is broken has no such answer either, and then
        // more is judged and not less.
        Err(_) => {
            let empty = ask(git(), "hash-object", ["-t", "tree", "--stdin"])?;
            String::from_utf8_lossy(&empty).trim().to_owned()
        }
    };
    let mut args = vec!["--cached"];
    args.extend(FORM);
    args.extend([tree.as_str(), "--"]);
    changes(&ask(git(), "diff-index", args)?)
}

/// What each commit of a range changes.
pub(super) fn range(range: &str) -> Result<Vec<Change>, GitError> {
    if !range.contains("..") {
        return Err(GitError::Range(range.into()));
    }
    commits(&ask(git(), "rev-list", ["--reverse", "--end-of-options", range, "--"])?)
}

/// What a push brings that the remote does not have. `told` is what git tells its pre-push hook.
pub(super) fn pushed(remote: &str, told: impl Read) -> Result<Vec<Change>, GitError> {
    let mut all = Vec::new();
    for line in BufReader::new(told).lines() {
        let line = line.map_err(GitError::Start)?;
        let words: Vec<&str> = line.split(' ').collect();
        let [_, local, _, theirs] = words.as_slice() else {
            return Err(GitError::Foreign("push"));
        };
        let none = |id: &str| id.bytes().all(|byte| byte == b'0');
        // A branch that goes brings nothing.
        if none(local) {
            continue;
        }
        let mut args = vec!["--reverse".to_owned(), (*local).to_owned(), "--not".to_owned()];
        // What the remote says that it has, if that is known here; and what it had before.
        let commit = format!("{theirs}^{{commit}}");
        if !none(theirs) && ask(git(), "cat-file", ["-e", commit.as_str()]).is_ok() {
            args.push((*theirs).to_owned());
        }
        args.push(format!("--remotes={}", escaped(remote)));
        all.extend(ask(git(), "rev-list", args)?);
    }
    commits(&all)
}

/// A remote's name is no pattern.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for letter in name.chars() {
        if matches!(letter, '*' | '?' | '[' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// What these commits change. A merge brings what none of its parents had.
fn commits(ids: &[u8]) -> Result<Vec<Change>, GitError> {
    let mut list = tempfile::tempfile().map_err(GitError::Start)?;
    list.write_all(ids).and_then(|()| list.rewind()).map_err(GitError::Start)?;
    let mut git = git();
    git.stdin(list);
    let mut args = vec!["--stdin", "-c", "--root"];
    args.extend(FORM);
    let all = changes(&ask(git, "diff-tree", args)?)?;
    // One content under one name is judged once.
    let mut seen = BTreeSet::new();
    let new = |change: &Change| seen.insert((change.name.clone(), change.source.clone()));
    Ok(all.into_iter().filter(new).collect())
}

/// Reads the raw form: `:MODE MODE ID ID STATUS`, of merges with more parents, then the name; between commits, theirs.
fn changes(raw: &[u8]) -> Result<Vec<Change>, GitError> {
    let foreign = || GitError::Foreign("diff");
    let mut parts = raw.split(|byte| *byte == 0);
    let (mut found, mut commit) = (Vec::new(), None);
    while let Some(part) = parts.next() {
        if part.is_empty() {
            continue;
        }
        let head = std::str::from_utf8(part).map_err(|_| foreign())?;
        if !head.starts_with(':') {
            let is_id = head.len() >= 40 && head.bytes().all(|byte| byte.is_ascii_hexdigit());
            commit = Some(is_id.then(|| head.to_owned()).ok_or_else(foreign)?);
            continue;
        }
        let fields = head.trim_start_matches(':');
        let parents = head.len() - fields.len();
        let fields: Vec<&str> = fields.split(' ').collect();
        let name = parts.next().filter(|name| !name.is_empty()).ok_or_else(foreign)?;
        let (Some(mode), Some(id), Some(status)) =
            (fields.get(parents), fields.get(2 * parents + 1), fields.get(2 * parents + 2))
        else {
            return Err(foreign());
        };
        let source = match *mode {
            _ if status.contains('U') => Source::Unmerged,
            "000000" => Source::Deleted,
            "160000" => Source::Submodule((*id).to_owned()),
            "100644" | "100755" | "100664" | "120000" => Source::Blob((*id).to_owned()),
            _ => return Err(foreign()),
        };
        found.push(Change { name: name.to_vec(), commit: commit.clone(), source });
    }
    Ok(found)
}

/// Reads objects, one after another.
#[derive(Debug)]
pub(super) struct Blobs {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Blobs {
    /// Starts git.
    pub(super) fn open() -> Result<Self, GitError> {
        let mut git = git();
        git.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = git.spawn().map_err(GitError::Start)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(asks), Some(answers)) => {
                Ok(Self { child, asks, answers: BufReader::new(answers) })
            }
            _ => Err(GitError::Foreign("cat-file")),
        }
    }

    /// The content of an object, whatever its size.
    pub(super) fn read(&mut self, id: &str) -> Result<Content, GitError> {
        let foreign = || GitError::Foreign("cat-file");
        let asked = writeln!(self.asks, "{id}").and_then(|()| self.asks.flush());
        asked.map_err(GitError::Start)?;
        let mut head = String::new();
        self.answers.read_line(&mut head).map_err(GitError::Start)?;
        let words: Vec<&str> = head.trim_end().split(' ').collect();
        let size: u64 = match words.as_slice() {
            [named, "blob", size] if *named == id => size.parse().map_err(|_| foreign())?,
            _ => {
                let why = format!("object {id} is not in the repository");
                return Err(GitError::Failed { what: "cat-file".into(), why });
            }
        };
        let mut whole = self.answers.by_ref().take(size);
        let content = Content::read(&mut whole).map_err(GitError::Start)?;
        let (left, mut end) = (whole.limit(), [0]);
        let ended = self.answers.read_exact(&mut end);
        if left > 0 || ended.is_err() || end != *b"\n" {
            return Err(foreign());
        }
        Ok(content)
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";
    const NONE: &str = "0000000000000000000000000000000000000000";

    fn one(raw: String) -> Change {
        let mut found = changes(raw.as_bytes()).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    #[test]
    fn the_result_is_read_of_commits_and_merges() {
        let change = one(format!(":000000 100644 {NONE} {A} A\0a b\nc\0"));
        assert_eq!(change.name, b"a b\nc");
        assert_eq!(change.source, Source::Blob(A.into()));
        let change = one(format!(":100644 000000 {A} {NONE} D\0:100644\0"));
        assert_eq!((change.name.as_slice(), change.source), (&b":100644"[..], Source::Deleted));
        let change = one(format!("{B}\0::100644 100644 100755 {A} {A} {B} MM\0x\0"));
        assert_eq!((change.commit.as_deref(), change.source), (Some(B), Source::Blob(B.into())));
        let change = one(format!(":000000 160000 {NONE} {A} A\0sub\0"));
        assert_eq!(change.source, Source::Submodule(A.into()));
        let change = one(format!(":100644 000000 {A} {NONE} U\0x\0"));
        assert_eq!(change.source, Source::Unmerged);
    }

    #[test]
    fn another_form_is_no_answer() {
        for raw in [
            "M\tx\0".to_owned(),
            format!(":100644 100644 {A} {B} M\0"),
            format!(":100644 040000 {A} {B} M\0x\0"),
            format!(":100644 100644 {A}\0x\0"),
        ] {
            assert!(changes(raw.as_bytes()).is_err(), "{raw}");
        }
        assert!(changes(b"").unwrap().is_empty());
    }

    #[test]
    fn a_remote_is_no_pattern() {
        assert_eq!(escaped("*"), r"\*");
        assert_eq!(escaped("origin"), "origin");
    }
}
