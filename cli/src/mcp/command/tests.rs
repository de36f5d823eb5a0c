//! Commands end, say what they said, and know nobody's secrets.

use std::fs;

use super::*;

fn words(words: &[&str]) -> Run {
    let folder = "/".to_owned();
    let environment = Environment::new(&[]);
    Run {
        program: environment.program(words[0]).unwrap(),
        words: words.iter().map(|&word| word.to_owned()).collect(),
        at: folder.clone(),
        folder,
        timeout: Duration::from_secs(60),
    }
}

async fn never() -> Cut {
    std::future::pending().await
}

#[tokio::test]
async fn a_command_is_its_words_and_no_shell_reads_them() {
    let ran =
        run(&words(&["printf", "%s|", "$HOME", "a b", ";", "*"]), &Environment::new(&[]), never())
            .await
            .unwrap();
    assert_eq!((ran.code, ran.cut), (Some(0), None));
    assert_eq!(ran.stdout.text(), "$HOME|a b|;|*|");
}

#[tokio::test]
async fn the_environment_is_cleaned() {
    // Every test has this one, put there by its runner.
    let own = env::var("CARGO_MANIFEST_DIR").unwrap();
    let ran = run(&words(&["env"]), &Environment::new(&[]), never()).await.unwrap();
    assert!(!ran.stdout.text().contains("CARGO_"), "{}", ran.stdout.text());
    let named = Environment::new(&["CARGO_MANIFEST_DIR".into()]);
    let ran = run(&words(&["env"]), &named, never()).await.unwrap();
    assert!(ran.stdout.text().contains(&format!("CARGO_MANIFEST_DIR={own}\n")));
}

#[tokio::test]
async fn a_command_and_what_it_started_end_when_they_must() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let script = format!("sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait", pids.display());
    for how in [Cut::Cancelled, Cut::Stopped] {
        let _ = fs::remove_file(&pids);
        let started = pids.clone();
        let cut = async move {
            while !started.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            how
        };
        let ran = run(&words(&["sh", "-c", &script]), &Environment::new(&[]), cut).await.unwrap();
        assert_eq!((ran.code, ran.cut), (None, Some(how)));
        let pid = fs::read_to_string(&pids).unwrap().trim().to_owned();
        gone(&pid).await;
    }
    let mut run_out = words(&["sleep", "600"]);
    run_out.timeout = Duration::from_millis(50);
    let ran = run(&run_out, &Environment::new(&[]), never()).await.unwrap();
    assert_eq!(ran.cut, Some(Cut::Timeout));
}

#[tokio::test]
async fn what_is_left_behind_ends_with_its_command() {
    let ran = run(&words(&["sh", "-c", "sleep 600 & echo $!"]), &Environment::new(&[]), never())
        .await
        .unwrap();
    assert_eq!(ran.code, Some(0));
    gone(ran.stdout.text().trim()).await;
}

/// Waits until a process is no more, or has ended and is not waited for.
async fn gone(pid: &str) {
    for _ in 0..1_000 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} still runs");
}

#[tokio::test]
async fn output_is_cut_and_its_writer_is_not_held_up() {
    let script = format!("head -c {} /dev/zero | tr '\\0' x; echo end >&2", MAX_OUTPUT + 7);
    let ran = run(&words(&["sh", "-c", &script]), &Environment::new(&[]), never()).await.unwrap();
    assert_eq!((ran.stdout.kept.len(), ran.stdout.dropped), (MAX_OUTPUT, 7));
    assert!(ran.stdout.text().ends_with("[7 bytes more]"));
    assert_eq!(ran.stderr.text(), "end\n");
}

#[test]
fn policies_see_a_command_as_a_shell_would_read_it() {
    let line = |words: &[&str]| line(&words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>());
    assert_eq!(line(&["rm", "-rf", "build"]), "rm -rf build");
    assert_eq!(line(&["echo", "a b", "", "it's", "$x", "é"]), r"echo 'a b' '' 'it'\''s' '$x' 'é'");
}

#[test]
fn programs_are_not_looked_for_where_the_agent_writes() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("aegis-planted");
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let up = "../".repeat(env::current_dir().unwrap().components().count() - 1);
    let relative = format!("{up}{}", folder.path().display().to_string().trim_start_matches('/'));
    let path = |path: String| Environment([("PATH".into(), path.into())].into());
    assert!(path(folder.path().display().to_string()).program("aegis-planted").is_ok());
    let planted = path(format!("{relative}::/usr/bin:/bin"));
    assert!(matches!(planted.program("aegis-planted"), Err(CommandError::Unknown)));
    assert!(planted.program("sh").unwrap().is_absolute());
}
