//! Go's `golang.org/x/mod/sumdb` verifies what this crate signed and hashed, without its code.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use aegis_audit::{export, verify};

use crate::fixture::{Log, fill};

/// The Go program `e2e/tlog`, built once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<std::path::PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/tlog");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tlog");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&out).arg(".").current_dir(module);
        let status = build.status().expect("`go` is needed to run this test; install it");
        assert!(status.success(), "e2e/tlog does not build");
        out
    })
}

fn go(dir: &Path, key: &str, proof: &Path) -> Result<String, String> {
    let out = Command::new(program()).arg(dir).arg(key).arg(proof).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

async fn exported(entries: u64) -> (Log, std::path::PathBuf, std::path::PathBuf) {
    let log = Log::new();
    let journal = log.open().await;
    fill(&journal, entries).await;
    journal.close().await.unwrap();
    let reader = log.reader().await;
    let dir = log.dir.path().join("export");
    assert_eq!(export::write_directory(&reader, &dir).await.unwrap(), Some(entries + 2));
    let proof = log.dir.path().join("entry.tlog-proof");
    let text = reader.prove(entries / 2, true).await.unwrap().unwrap().to_text();
    std::fs::write(&proof, text).unwrap();
    (log, dir, proof)
}

#[tokio::test]
async fn go_verifies_checkpoints_entries_tiles_and_proofs() {
    for entries in [0, 1, 5, 254, 255, 600] {
        let (log, dir, proof) = exported(entries).await;
        let key = log.signer.verifier().to_string();
        let said = go(&dir, &key, &proof).unwrap();
        assert!(said.contains(&format!("verified {} entries", entries + 2)), "{said}");
        let report =
            verify::verify_directory(&dir, log.signer.verifier().clone(), None, |_, _| {}).await;
        assert_eq!(report.unwrap().head.size, entries + 2);
    }
}

#[tokio::test]
async fn both_refuse_an_altered_export() {
    let (log, dir, proof) = exported(600).await;
    let key = log.signer.verifier().to_string();
    let other = aegis_audit::Signer::from_seed(crate::fixture::ORIGIN, &[8; 32]).unwrap();
    assert!(go(&dir, &other.verifier().to_string(), &proof).is_err());
    for name in
        ["checkpoint", "tile/0/000", "tile/0/002.p/90", "tile/1/000.p/2", "tile/entries/001"]
    {
        let path = dir.join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(go(&dir, &key, &proof).is_err(), "go accepted an altered {name}");
        let report =
            verify::verify_directory(&dir, log.signer.verifier().clone(), None, |_, _| {}).await;
        assert!(report.is_err(), "we accepted an altered {name}");
        std::fs::write(&path, good).unwrap();
    }
    go(&dir, &key, &proof).unwrap();
}
