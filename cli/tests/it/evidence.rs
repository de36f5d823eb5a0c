//! Verifying, proving and folding: offline, on databases and tiles.

use std::fs;

use aegis_core::Digest;
use serde_json::{Value, json};

use crate::fixture::{AGENT, Ledger, aegis, arguments, text};

#[tokio::test]
async fn a_sound_ledger_verifies() {
    let ledger = Ledger::with(300).await;
    let (path, key) = (text(&ledger.path), ledger.key());
    let run = aegis(&["audit", "verify", "--database", path, "--key", &key]).exits(0);
    assert!(run.stdout.starts_with("verified: 602 entries, none altered"), "{}", run.stdout);
    assert!(run.stdout.contains("ledger.db.checkpoint covers"), "{}", run.stdout);
    assert_eq!(run.stderr, "", "no progress where nobody watches");
    let told = aegis(&["audit", "verify", "--database", path, "-o", "json"]).exits(0).json();
    assert_eq!(
        (&told["ok"], &told["size"], &told["signed"]),
        (&json!(true), &json!(602), &json!(602))
    );
    assert_eq!(told["key"], json!(key));
    let warning = told["warnings"][0].as_str().unwrap();
    assert!(warning.contains("read from the log itself"), "{warning}");
}

#[tokio::test]
async fn the_first_altered_entry_is_named() {
    let ledger = Ledger::with(40).await;
    let mut bytes = fs::read(&ledger.path).unwrap();
    let wanted = b"file:///srv/entry-17-end";
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).unwrap();
    bytes[at + 17] = b'2';
    fs::write(&ledger.path, &bytes).unwrap();
    // Entry 0 opens the journal; each call is two entries.
    let run = aegis(&["audit", "verify", "--database", text(&ledger.path), "--key", &ledger.key()])
        .refuses("the log does not verify: entry 35 (source `daemon`, sequence 36)");
    assert!(run.stderr.contains("its bytes do not have the recorded leaf hash"), "{}", run.stderr);
    let run = aegis(&["audit", "verify", "--database", text(&ledger.path), "-o", "json"]).exits(1);
    assert_eq!((&run.json()["ok"], &run.json()["entry"]), (&json!(false), &json!(35)));
}

#[tokio::test]
async fn a_rolled_back_ledger_is_noticed() {
    let ledger = Ledger::with(5).await;
    let old = ledger.file("old.db");
    fs::copy(&ledger.path, &old).unwrap();
    ledger.grow(5..10).await;
    let kept = ledger.file("ledger.db.checkpoint");
    let verify = |file: &str| {
        let key = ledger.key();
        aegis(&["audit", "verify", "--database", file, "--key", &key, "--checkpoint", text(&kept)])
    };
    verify(text(&ledger.path)).exits(0);
    verify(text(&old)).refuses("the log was truncated: it has 12 entries");
    // Beside a database, the checkpoint is found without being named.
    fs::copy(&kept, ledger.file("old.db.checkpoint")).unwrap();
    aegis(&["audit", "verify", "--database", text(&old)]).refuses("truncated");
}

#[tokio::test]
async fn another_key_or_file_is_refused() {
    let ledger = Ledger::with(1).await;
    let other = aegis_audit::Signer::from_seed("acme.example/audit", &[1; 32]).unwrap();
    let key = other.verifier().to_string();
    aegis(&["audit", "verify", "--database", text(&ledger.path), "--key", &key])
        .refuses("is refused");
    aegis(&["audit", "verify", "--database", "/nonexistent/ledger.db"]).refuses("/nonexistent");
    let file = ledger.file("other.db");
    fs::write(&file, "not a database").unwrap();
    aegis(&["audit", "verify", "--database", text(&file)]).refuses("other.db");
}

#[tokio::test]
async fn a_proof_holds_for_its_entry_only() {
    let ledger = Ledger::with(10).await;
    let (path, key) = (text(&ledger.path), ledger.key());
    let proof = ledger.file("7.tlog-proof");
    aegis(&["audit", "prove", "7", "--database", path, "--disclose", "-O", text(&proof)]).exits(0);
    let check = |more: &[&str]| {
        let mut args = vec!["audit", "check-proof", text(&proof), "--key", &key];
        args.extend(more);
        aegis(&args)
    };
    let run = check(&[]).exits(0);
    assert!(
        run.stdout.starts_with("entry 7 is in the log of acme.example/audit"),
        "{}",
        run.stdout
    );
    // Entry 7 is the decision on call 3.
    let given = ledger.file("arguments.json");
    fs::write(&given, arguments(3).to_string()).unwrap();
    assert_eq!(
        check(&["--arguments", text(&given), "-o", "json"]).exits(0).json()["arguments"],
        true
    );
    fs::write(&given, arguments(4).to_string()).unwrap();
    check(&["--arguments", text(&given)]).refuses("not those that were recorded");
    let entry = ledger.file("7.tlog-proof.json");
    let altered = fs::read_to_string(&entry).unwrap().replace("entry-3-end", "entry-4-end");
    fs::write(&entry, altered).unwrap();
    check(&[]).refuses("the proof does not hold");
    aegis(&["audit", "prove", "999", "--database", path])
        .refuses("there is no entry 999: the log holds 22 of them");
    aegis(&["audit", "prove", "0", "--database", path, "--disclose"])
        .refuses("no salt to disclose");
    let without = aegis(&["audit", "prove", "7", "--database", path]).exits(0).stdout;
    assert!(
        without.starts_with("c2sp.org/tlog-proof@v1\nindex 7\n"),
        "nothing is disclosed unasked"
    );
}

#[tokio::test]
async fn an_export_is_the_log_itself() {
    let ledger = Ledger::with(300).await;
    let path = text(&ledger.path);
    let lines = aegis(&["audit", "export", "--jsonl", "--database", path]).exits(0).stdout;
    assert_eq!(lines.lines().count(), 602);
    for (index, line) in lines.lines().enumerate() {
        check_line(index as u64, line);
    }
    let tiles = ledger.file("tiles");
    aegis(&["audit", "export", "--tiles", text(&tiles), "--database", path]).exits(0);
    let verify = || aegis(&["audit", "verify", "--tiles", text(&tiles), "--key", &ledger.key()]);
    assert!(verify().exits(0).stdout.starts_with("verified: 602 entries"));
    fs::remove_file(tiles.join("tile/0/001")).unwrap();
    verify().refuses("tile 0/1");
}

/// The entry stands in the line in its canonical bytes: they have the leaf hash beside them.
pub(crate) fn check_line(index: u64, line: &str) {
    let told: Value = serde_json::from_str(line).unwrap();
    assert_eq!(told["index"], json!(index));
    let (_, entry) = line.split_once("\"entry\":").unwrap();
    let leaf = Digest::of_parts(&[&[0], entry.strip_suffix('}').unwrap().as_bytes()]);
    assert_eq!(told["leaf_hash"], json!(leaf));
}

#[tokio::test]
async fn trust_is_folded_step_by_step() {
    let ledger = Ledger::with(10).await;
    let path = text(&ledger.path);
    let told = aegis(&["trust", "replay", "--database", path, "-o", "json"]).exits(0).json();
    assert_eq!((&told["compared"], &told["as_of"]), (&Value::Null, &json!(22)));
    // Nine successes of 0.3 each for, one violation of 0.3 against; one each from the prior.
    let expected = json!([{ "agent": AGENT, "score": 740, "a": 3_700_000, "b": 1_300_000 }]);
    assert_eq!(told["agents"], expected);
    let told =
        aegis(&["trust", "explain", AGENT, "--database", path, "-o", "json"]).exits(0).json();
    let steps = told["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &told["trust"]["score"]), (10, &json!(740)));
    assert_eq!(steps[0]["before"]["score"], 500);
    for pair in steps.windows(2) {
        assert_eq!(pair[0]["after"], pair[1]["before"]);
    }
    let run = aegis(&["trust", "explain", AGENT, "--database", path]).exits(0);
    assert!(run.stdout.contains("read_file was refused (policy_denied)"), "{}", run.stdout);
    assert!(run.stdout.contains("a 1.000000 → 1.300000, b 1.000000 → 1.000000: score 500 → 565"));
}
