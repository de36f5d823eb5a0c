//! `aegis integrate git` in real repositories: what is committed, merged and pushed is what was judged.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    check::EDITOR,
    fixture::{Run, text},
    live::Live,
};

/// A repository, and the socket that its gates ask.
struct Repo {
    folder: tempfile::TempDir,
    control: PathBuf,
}

impl Repo {
    fn new(control: PathBuf) -> Self {
        let repo = Self { folder: tempfile::tempdir().unwrap(), control };
        for name in ["home", "work"] {
            fs::create_dir(repo.folder.path().join(name)).unwrap();
        }
        repo.git(&["init", "-q", "-b", "main"]).exits(0);
        repo
    }

    /// With gates.
    fn gated(control: PathBuf) -> Self {
        let repo = Self::new(control);
        repo.integrate(&[]).exits(0);
        repo
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn hook(&self, name: &str) -> PathBuf {
        self.work().join(".git/hooks").join(name)
    }

    fn run_in(&self, folder: &Path, program: &str, args: &[&str]) -> Run {
        let mut command = Command::new(program);
        command.args(args).current_dir(folder).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.folder.path().join("home"));
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("AEGIS_SOCKET", &self.control);
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "Ada");
            command.env(format!("GIT_{role}_EMAIL"), "ada@acme.example");
        }
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Run { code: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
    }

    fn git(&self, args: &[&str]) -> Run {
        self.run_in(&self.work(), "git", args)
    }

    fn aegis(&self, args: &[&str]) -> Run {
        self.run_in(&self.work(), env!("CARGO_BIN_EXE_aegis"), args)
    }

    fn integrate(&self, more: &[&str]) -> Run {
        self.aegis(&[&["integrate", "git"], more].concat())
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn add(&self, name: &str, content: &str) {
        self.write(name, content);
        self.git(&["add", "--", name]).exits(0);
    }

    fn head(&self) -> String {
        self.git(&["rev-parse", "--verify", "-q", "HEAD"]).stdout
    }

    fn commits(&self, args: &[&str]) {
        let before = self.head();
        self.git(&[&["commit", "-q", "-m", "x"], args].concat()).exits(0);
        assert_ne!(self.head(), before);
    }

    /// Fails unless no commit is made, for this reason.
    fn refuses(&self, args: &[&str], part: &str) {
        let before = self.head();
        let run = self.git(&[&["commit", "-q", "-m", "x"], args].concat());
        assert_ne!(run.code, 0, "{}", run.stdout);
        let told = format!("{}{}", run.stdout, run.stderr);
        assert!(told.contains(part), "lacks `{part}`: {told}");
        assert!(told.contains("nothing is committed"), "{told}");
        assert_eq!(self.head(), before, "{told}");
    }
}

async fn live() -> Live {
    Live::start(EDITOR, &[]).await
}

fn control(live: &Live) -> PathBuf {
    live.state().join("control.sock")
}

/// What is done in a repository takes a while, and the daemon's test goes on.
async fn with<T: Send + 'static>(
    repo: Repo,
    what: impl FnOnce(&Repo) -> T + Send + 'static,
) -> (Repo, T) {
    tokio::task::spawn_blocking(move || {
        let result = what(&repo);
        (repo, result)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn what_is_staged_is_judged_and_not_what_is_on_disk() {
    let mut live = live().await;
    let (repo, ()) = with(Repo::gated(control(&live)), |repo| {
        repo.add("a.txt", "fine\n");
        repo.commits(&[]);
        repo.add("a.txt", "FORBIDDEN\n");
        repo.refuses(&[], "refused     a.txt: Keys do not belong in files");
        // On disk it is fine again; staged it is not.
        repo.write("a.txt", "fine\n");
        repo.refuses(&[], "a.txt: Keys do not belong");
        // The other way round.
        repo.add("a.txt", "fine again\n");
        repo.write("a.txt", "FORBIDDEN\n");
        repo.commits(&[]);
        // An index of its own, for this one commit.
        repo.refuses(&["-a"], "a.txt: Keys");
        repo.refuses(&["a.txt"], "a.txt: Keys");
        repo.write("a.txt", "fine\n");
        repo.commits(&["a.txt"]);
    })
    .await;
    // Of the ledger: each file of each commit, as a commit.
    let decisions = live.entries("decision").await;
    assert_eq!(decisions.len(), 7);
    assert!(decisions.iter().all(|entry| entry["arguments"]["mode"] == "commit"));
    live.kill();
    let (_, ()) = with(repo, |repo| {
        repo.add("b.txt", "fine\n");
        repo.refuses(&[], "does not answer at");
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_hangs_or_talks_nonsense_permits_nothing() {
    for answer in [
        None,
        Some("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"decision\":true}"),
        Some("yes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("kernel.sock")).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if let Some(answer) = answer {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(answer.as_bytes());
                }
                held.push(stream);
            }
        });
        let repo = Repo::gated(folder.path().join("control.sock"));
        let part = match answer {
            None => "gave no answer within 5 s",
            Some(_) => "is no Aegis daemon",
        };
        with(repo, move |repo| {
            repo.add("a.txt", "fine\n");
            repo.refuses(&[], part);
        })
        .await;
    }
}

#[tokio::test]
async fn names_renames_deletions_links_and_submodules_are_judged() {
    let live = live().await;
    with(Repo::gated(control(&live)), |repo| {
        repo.add("a b  c.txt", "fine\n");
        repo.add("'q\" $x`.txt", "fine\n");
        repo.commits(&[]);
        repo.add("a b  d.txt", "FORBIDDEN\n");
        repo.refuses(&[], "a b  d.txt: Keys");
        repo.git(&["reset", "-q"]).exits(0);
        fs::remove_file(repo.work().join("a b  d.txt")).unwrap();
        repo.add("line\nend.txt", "fine\n");
        repo.refuses(&[], "its name has control characters");
        repo.git(&["rm", "-q", "--cached", "line\nend.txt"]).exits(0);
        // A renamed file has a new path, which may be forbidden; its old one goes.
        fs::create_dir(repo.work().join("kept")).unwrap();
        repo.git(&["mv", "a b  c.txt", "kept/c.txt"]).exits(0);
        repo.refuses(&[], "kept/c.txt: What is kept stays");
        repo.git(&["mv", "kept/c.txt", "moved.txt"]).exits(0);
        repo.commits(&[]);
        // So may the deletion of a file.
        repo.add("kept/e.txt", "fine\n");
        repo.commits(&["--no-verify"]);
        repo.git(&["rm", "-q", "kept/e.txt"]).exits(0);
        repo.refuses(&[], "kept/e.txt: What is kept stays");
        repo.git(&["reset", "-q", "--hard"]).exits(0);
        repo.git(&["rm", "-q", "moved.txt"]).exits(0);
        repo.commits(&[]);
        // A link is where it leads, as text.
        std::os::unix::fs::symlink("/srv/FORBIDDEN", repo.work().join("link")).unwrap();
        repo.git(&["add", "link"]).exits(0);
        repo.refuses(&[], "link: Keys");
        repo.git(&["rm", "-q", "--cached", "link"]).exits(0);
        // A submodule is a commit, under its path.
        let other = Repo::new(repo.control.clone());
        other.add("x", "x\n");
        other.commits(&[]);
        let theirs = other.work();
        let add = [
            "-c",
            "protocol.file.allow=always",
            "submodule",
            "add",
            "-q",
            text(&theirs),
            "kept/sub",
        ];
        repo.git(&add).exits(0);
        repo.refuses(&[], "kept/sub: What is kept stays");
        repo.git(&["mv", "kept/sub", "sub"]).exits(0);
        repo.commits(&[]);
        fs::write(repo.work().join("image.png"), b"\0\xff").unwrap();
        repo.git(&["add", "image.png"]).exits(0);
        repo.refuses(&[], "image.png: it is binary");
        repo.integrate(&["--by-path"]).exits(0);
        repo.commits(&[]);
    })
    .await;
}

#[tokio::test]
async fn what_was_committed_unasked_is_stopped_at_the_push() {
    let mut live = live().await;
    let (repo, ()) = with(Repo::gated(control(&live)), |repo| {
        let bare = repo.folder.path().join("bare");
        fs::create_dir(&bare).unwrap();
        repo.run_in(&bare, "git", &["init", "-q", "--bare"]).exits(0);
        repo.git(&["remote", "add", "origin", text(&bare)]).exits(0);
        let there = |branch: &str| {
            repo.run_in(&bare, "git", &["rev-parse", "-q", "--verify", branch]).stdout
        };
        repo.add("a.txt", "fine\n");
        repo.commits(&[]);
        repo.git(&["push", "-q", "origin", "main"]).exits(0);
        let first = there("main");
        assert_eq!(first, repo.head());
        // Committed past the gate, and taken back by a commit of which there is nothing to say.
        repo.add("key.txt", "FORBIDDEN\n");
        repo.commits(&["--no-verify"]);
        let bad = repo.head();
        repo.git(&["rm", "-q", "key.txt"]).exits(0);
        repo.commits(&[]);
        for refspec in ["main", "main:other", "HEAD:refs/tags/v1"] {
            let run = repo.git(&["push", "-q", "origin", refspec]);
            assert_ne!(run.code, 0);
            let told = format!("{}{}", run.stdout, run.stderr);
            for part in [
                &format!("key.txt (commit {})", bad.get(..12).unwrap()),
                "Keys do not belong",
                "nothing is pushed",
            ] {
                assert!(told.contains(part), "lacks `{part}`: {told}");
            }
        }
        assert_eq!(there("main"), first);
        assert_eq!(there("other"), "");
        // To a remote of which nothing is known, everything is new.
        let run = repo.git(&["push", "-q", text(&bare), "main:third"]);
        assert!(
            run.stdout.contains("3 files") || run.stderr.contains("3 files"),
            "{}{}",
            run.stdout,
            run.stderr
        );
        // Without it, the rest goes; so does the branch itself.
        repo.git(&["reset", "-q", "--hard", first.trim()]).exits(0);
        repo.add("b.txt", "fine\n");
        repo.commits(&[]);
        repo.git(&["push", "-q", "origin", "main", "main:other"]).exits(0);
        assert_eq!(there("main"), repo.head());
        repo.git(&["push", "-q", "origin", "--delete", "other"]).exits(0);
        // What a merge itself brings is in none of its parents.
        repo.git(&["checkout", "-q", "-b", "side", "HEAD~"]).exits(0);
        repo.add("c.txt", "fine\n");
        repo.commits(&[]);
        repo.git(&["checkout", "-q", "main"]).exits(0);
        repo.git(&["merge", "-q", "--no-commit", "--no-ff", "side"]).exits(0);
        repo.add("merged.txt", "FORBIDDEN\n");
        repo.refuses(&[], "merged.txt: Keys");
        repo.git(&["commit", "-q", "--no-verify", "-m", "x"]).exits(0);
        let run = repo.git(&["push", "-q", "origin", "main"]);
        assert!(run.code != 0 && format!("{}{}", run.stdout, run.stderr).contains("merged.txt"));
    })
    .await;
    live.kill();
    with(repo, |repo| {
        let run = repo.git(&["push", "-q", "origin", "side:refs/heads/late"]);
        assert!(run.code != 0 && run.stderr.contains("does not answer at"), "{}", run.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_merge_asks_too() {
    let live = live().await;
    with(Repo::gated(control(&live)), |repo| {
        repo.add("a.txt", "fine\n");
        repo.commits(&[]);
        repo.git(&["checkout", "-q", "-b", "side"]).exits(0);
        repo.add("b.txt", "FORBIDDEN\n");
        repo.commits(&["--no-verify"]);
        repo.git(&["checkout", "-q", "main"]).exits(0);
        repo.add("c.txt", "fine\n");
        repo.commits(&[]);
        let before = repo.head();
        let run = repo.git(&["merge", "-q", "--no-edit", "side"]);
        assert!(
            run.code != 0 && run.stderr.contains("the merge is not committed"),
            "{}",
            run.stderr
        );
        assert_eq!(repo.head(), before);
    })
    .await;
}

#[tokio::test]
async fn what_is_held_back_is_committed_once_a_person_agrees() {
    let live = live().await;
    let (repo, id) = with(Repo::gated(control(&live)), |repo| {
        repo.add("a.txt", "ASKME\n");
        repo.refuses(&[], "held back   a.txt");
        let run = repo.git(&["commit", "-q", "-m", "x"]);
        let told = format!("{}{}", run.stdout, run.stderr);
        let id = told.split("aegis approvals approve ").nth(1).unwrap();
        id.split('`').next().unwrap().to_owned()
    })
    .await;
    live.aegis(&["approvals", "approve", &id]).await.exits(0);
    with(repo, |repo| {
        // What was agreed to, and nothing else; and once.
        repo.add("a.txt", "ASKME more\n");
        repo.refuses(&[], "held back   a.txt");
        repo.add("a.txt", "ASKME\n");
        repo.commits(&[]);
        repo.git(&["rm", "-q", "--cached", "a.txt"]).exits(0);
        repo.commits(&[]);
        repo.git(&["add", "a.txt"]).exits(0);
        repo.refuses(&[], "held back   a.txt");
    })
    .await;
}

#[tokio::test]
async fn a_replaced_object_does_not_stand_in_for_another() {
    let live = live().await;
    with(Repo::gated(control(&live)), |repo| {
        repo.add("a.txt", "FORBIDDEN\n");
        let bad = repo.git(&["rev-parse", ":a.txt"]).stdout;
        repo.write("good.txt", "fine\n");
        let good = repo.git(&["hash-object", "-w", "good.txt"]).stdout;
        repo.git(&["replace", bad.trim(), good.trim()]).exits(0);
        assert_eq!(repo.git(&["show", ":a.txt"]).stdout, "fine\n");
        repo.refuses(&[], "a.txt: Keys");
    })
    .await;
}

fn executable(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_hook_that_was_there_runs_first_and_comes_back() {
    let live = live().await;
    with(Repo::new(control(&live)), |repo| {
        let own = "#!/bin/sh\necho own >>ran\n[ ! -e stop ] || exit 3\n[ ! -e more ] || { echo FORBIDDEN >more.txt; git add more.txt; }\n";
        executable(&repo.hook("pre-commit"), own);
        executable(&repo.hook("pre-push"), "#!/bin/sh\necho \"$@\" >pushed\ncat >>pushed\n");
        repo.integrate(&["--check"]).exits(1);
        repo.integrate(&[]).exits(0);
        repo.integrate(&["--check"]).exits(0);
        assert!(repo.integrate(&[]).exits(0).stdout.contains("stays as it is"));
        repo.add("a.txt", "fine\n");
        repo.commits(&[]);
        assert_eq!(fs::read_to_string(repo.work().join("ran")).unwrap(), "own\n");
        repo.add("a.txt", "FORBIDDEN\n");
        repo.refuses(&[], "a.txt: Keys");
        repo.add("a.txt", "fine too\n");
        repo.write("stop", "");
        let run = repo.git(&["commit", "-q", "-m", "x"]);
        assert_eq!((run.code, run.stderr.as_str()), (1, ""));
        fs::remove_file(repo.work().join("stop")).unwrap();
        // What it stages itself is judged too.
        repo.write("more", "");
        repo.refuses(&[], "more.txt: Keys");
        fs::remove_file(repo.work().join("more")).unwrap();
        repo.git(&["rm", "-q", "-f", "more.txt"]).exits(0);
        repo.commits(&[]);
        let bare = repo.folder.path().join("bare");
        fs::create_dir(&bare).unwrap();
        repo.run_in(&bare, "git", &["init", "-q", "--bare"]).exits(0);
        repo.git(&["push", "-q", text(&bare), "main"]).exits(0);
        let told = fs::read_to_string(repo.work().join("pushed")).unwrap();
        assert!(told.contains("refs/heads/main") && told.contains(repo.head().trim()), "{told}");
        // Another tool has written its own over ours.
        let gate = fs::read_to_string(repo.hook("pre-commit")).unwrap();
        executable(&repo.hook("pre-commit"), "#!/bin/sh\n");
        repo.integrate(&["--check"]).exits(1);
        repo.integrate(&[]).refuses("is one kept there already?");
        executable(&repo.hook("pre-commit"), &gate);
        repo.integrate(&["--remove"]).exits(0);
        assert_eq!(fs::read_to_string(repo.hook("pre-commit")).unwrap(), own);
        assert!(!repo.hook("pre-merge-commit").exists());
        assert!(!repo.hook("pre-commit.before-aegis").exists());
        repo.add("a.txt", "FORBIDDEN\n");
        repo.commits(&[]);
    })
    .await;
}

#[tokio::test]
async fn the_gate_is_where_git_looks_for_it() {
    let live = live().await;
    with(Repo::new(control(&live)), |repo| {
        repo.git(&["config", "core.hooksPath", "tools/my hooks"]).exits(0);
        fs::create_dir_all(repo.work().join("deep/er")).unwrap();
        let aegis = env!("CARGO_BIN_EXE_aegis");
        let deep = repo.work().join("deep/er");
        let run = repo.run_in(&deep, aegis, &["integrate", "git"]).exits(0);
        assert!(run.stdout.contains("core.hooksPath is set"), "{}", run.stdout);
        assert!(repo.work().join("tools/my hooks/pre-commit").exists());
        repo.add("a.txt", "FORBIDDEN\n");
        repo.refuses(&[], "a.txt: Keys");
        repo.integrate(&["--remove"]).exits(0);
        repo.git(&["config", "--unset", "core.hooksPath"]).exits(0);
        // A linked work tree has the gates of its repository.
        repo.add("a.txt", "fine\n");
        repo.commits(&[]);
        let tree = repo.folder.path().join("tree");
        repo.git(&["worktree", "add", "-q", "-b", "side", text(&tree)]).exits(0);
        repo.run_in(&tree, aegis, &["integrate", "git"]).exits(0);
        assert!(repo.hook("pre-commit").exists());
        fs::write(tree.join("a.txt"), "FORBIDDEN\n").unwrap();
        let run = repo.run_in(&tree, "git", &["commit", "-q", "-a", "-m", "x"]);
        assert!(
            run.code != 0 && run.stdout.contains("a.txt: Keys")
                || run.stderr.contains("a.txt: Keys"),
            "{}{}",
            run.stdout,
            run.stderr
        );
        // Husky's folder is written anew by husky.
        repo.git(&["config", "core.hooksPath", ".husky/_"]).exits(0);
        repo.integrate(&[]).refuses("husky");
        repo.run_in(&repo.folder.path().join("home"), aegis, &["integrate", "git"]).refuses("git");
        repo.integrate(&["--wrap-mcp"]).refuses("for agents");
    })
    .await;
}

#[tokio::test]
async fn a_gate_without_its_program_stops() {
    let live = live().await;
    with(Repo::gated(control(&live)), |repo| {
        for name in ["pre-commit", "pre-push"] {
            let gate = fs::read_to_string(repo.hook(name)).unwrap();
            executable(
                &repo.hook(name),
                &gate.replace(env!("CARGO_BIN_EXE_aegis"), "/nonexistent/aegis"),
            );
        }
        repo.add("a.txt", "fine\n");
        repo.refuses(&[], "/nonexistent/aegis is not there");
    })
    .await;
}
