//! Every way to alter, cut, swap or replace a log is noticed, and named.

use std::path::Path;

use aegis_audit::{
    Journal, Location, Reader, Report, StoreError, Trusted, VerifyError, checkpoint, tree, verify,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::fixture::{Log, beside, fill};

async fn alter(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path);
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn sql(conn: &mut SqliteConnection, text: String) {
    sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await.unwrap();
}

async fn check(log: &Log) -> Result<Report, VerifyError> {
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: None };
    verify::verify(&Reader::open_copy(&log.path).await?, &trusted, |_, _| {}).await
}

async fn set_body(conn: &mut SqliteConnection, index: i64, body: &[u8], with_leaf: bool) {
    sqlx::query("UPDATE audit_entries SET body = $1 WHERE idx = $2")
        .bind(body.to_vec())
        .bind(index)
        .execute(&mut *conn)
        .await
        .unwrap();
    if with_leaf {
        sqlx::query("UPDATE audit_entries SET leaf = $1 WHERE idx = $2")
            .bind(tree::leaf_hash(body).as_bytes().to_vec())
            .bind(index)
            .execute(conn)
            .await
            .unwrap();
    }
}

fn named(result: Result<Report, VerifyError>, what: &str) -> (u64, String, u64, String) {
    match result {
        Err(VerifyError::Entry { index, origin, sequence, why }) => (index, origin, sequence, why),
        other => panic!("{what}: {other:?}"),
    }
}

/// Index 7 lies in a full tile, 290 in the partial one at the edge.
#[tokio::test]
async fn every_field_is_under_the_hash() {
    let log = Log::with_entries(300).await;
    let mut conn = alter(&log.path).await;
    for index in [7_i64, 290] {
        let stored = log.reader().await.entry(index as u64).await.unwrap().unwrap();
        let serde_json::Value::Object(members) = serde_json::from_slice(&stored.body).unwrap()
        else {
            panic!("an entry is an object");
        };
        assert_eq!(members.len(), 23, "the fixture sets every field");
        for name in members.keys() {
            let mut altered = members.clone();
            let value = altered.get_mut(name).unwrap();
            *value = match value {
                serde_json::Value::Number(n) => (n.as_u64().unwrap() + 1).into(),
                serde_json::Value::String(s) => format!("{s}x").into(),
                serde_json::Value::Array(_) => serde_json::json!([]),
                _ => serde_json::json!({ "tool": "other" }),
            };
            let body = aegis_core::canonical::to_vec(&altered).unwrap();
            set_body(&mut conn, index, &body, false).await;
            let (at, source, sequence, why) = named(check(&log).await, name);
            assert_eq!((at, source.as_str(), sequence), (index as u64, "test", index as u64 + 1));
            assert!(why.contains("leaf hash"), "{name}: {why}");
        }
        // A removed field is no better than a changed one.
        let mut altered = members.clone();
        altered.remove("approval");
        let body = aegis_core::canonical::to_vec(&altered).unwrap();
        set_body(&mut conn, index, &body, false).await;
        assert_eq!(named(check(&log).await, "removed").0, index as u64);
        // Neither is one whose stored leaf hash was made to fit: the tree or the chain tells.
        set_body(&mut conn, index, &body, true).await;
        let (at, ..) = named(check(&log).await, "with its leaf");
        assert_eq!(at, if index == 7 { 7 } else { 291 });
        set_body(&mut conn, index, &stored.body, true).await;
        check(&log).await.unwrap();
    }
}

#[tokio::test]
async fn the_columns_cannot_lie() {
    let log = Log::with_entries(20).await;
    let mut conn = alter(&log.path).await;
    sql(&mut conn, "INSERT INTO audit_sources (name) VALUES ('other')".into()).await;
    for (column, value) in [
        ("timestamp", "1"),
        ("kind", "'outcome'"),
        ("result", "'allow'"),
        ("agent_id", "'spiffe://acme.example/x'"),
        ("reason", "NULL"),
        ("server", "'other'"),
        ("tool", "NULL"),
        ("decision_id", "'d99'"),
        ("source", "2"),
        ("sequence", "99"),
    ] {
        let keep = "CREATE TEMP TABLE kept AS SELECT * FROM audit_entries WHERE idx = 6";
        sql(&mut conn, keep.into()).await;
        sql(&mut conn, format!("UPDATE audit_entries SET {column} = {value} WHERE idx = 6")).await;
        let (index, _, _, why) = named(check(&log).await, column);
        assert_eq!(index, 6);
        assert!(why.contains(&format!("column `{column}`")), "{why}");
        sql(&mut conn, "REPLACE INTO audit_entries SELECT * FROM kept; DROP TABLE kept".into())
            .await;
    }
    check(&log).await.unwrap();
}

/// Whoever hides an entry from queries leaves it in the tree, and verification says so.
#[tokio::test]
async fn the_lists_cannot_lie() {
    let log = Log::with_entries(600).await;
    check(&log).await.unwrap();
    let mut conn = alter(&log.path).await;
    for (table, change, told) in [
        ("audit_lookup", "DELETE FROM audit_lookup WHERE field = 1 AND idx = 300", "entry 300 is"),
        ("audit_lookup", "DELETE FROM audit_lookup WHERE field = 2 AND idx = 6", "entry 6 is"),
        ("audit_lookup", "DELETE FROM audit_lookup WHERE field = 3", "entry 0 is"),
        ("audit_lookup", "DELETE FROM audit_lookup WHERE field = 4 AND idx = 511", "entry 511 is"),
        (
            "audit_lookup",
            "UPDATE audit_lookup SET idx = 0 WHERE field = 2 AND idx = 9",
            "entry 9 is",
        ),
        ("audit_lookup", "INSERT INTO audit_lookup VALUES (4, 'deny', 2)", "not in the entries"),
        ("audit_times", "DELETE FROM audit_times WHERE tile = 1", "other times"),
        ("audit_times", "UPDATE audit_times SET last = last - 1 WHERE tile = 0", "other times"),
        ("audit_times", "UPDATE audit_times SET first = first + 1 WHERE tile = 1", "other times"),
    ] {
        sql(&mut conn, format!("CREATE TEMP TABLE kept AS SELECT * FROM {table}; {change}")).await;
        match check(&log).await {
            Err(VerifyError::Lists { why }) => assert!(why.contains(told), "{change}: {why}"),
            other => panic!("{change}: {other:?}"),
        }
        let mend =
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept");
        sql(&mut conn, mend).await;
        check(&log).await.unwrap();
    }
}

/// What somebody puts into the lists ahead of time finds nothing and stops nobody.
#[tokio::test]
async fn what_is_listed_ahead_of_time_does_not_count() {
    let log = Log::with_entries(20).await;
    let mut conn = alter(&log.path).await;
    let ahead = "INSERT INTO audit_lookup VALUES (2, 'd30', 33), (2, 'other', 33); \
                 INSERT INTO audit_times VALUES (0, 5, 5)";
    sql(&mut conn, ahead.into()).await;
    conn.close().await.unwrap();
    let reader = log.reader().await;
    let filter = aegis_audit::Filter { decision_id: Some("other".into()), ..Default::default() };
    assert_eq!(reader.query(&filter).await.unwrap().entries, []);
    check(&log).await.unwrap();
    let journal = log.open().await;
    fill(&journal, 300).await;
    journal.close().await.unwrap();
    assert!(matches!(check(&log).await, Err(VerifyError::Lists { .. })));
}

/// A row past the end or before the beginning is under no hash, so nothing may read it.
#[tokio::test]
async fn a_row_outside_the_tree_is_named_and_never_read() {
    let log = Log::with_entries(20).await;
    let mut conn = alter(&log.path).await;
    let count = || async {
        let page = log.reader().await.query(&aegis_audit::Filter::default()).await.unwrap();
        page.entries.len()
    };
    let before = count().await;
    for index in ["1000000000000000", "-5"] {
        let forge = format!(
            "CREATE TEMP TABLE forged AS SELECT * FROM audit_entries WHERE idx = 6; \
             UPDATE forged SET idx = {index}, sequence = 1000 + abs({index}); \
             INSERT INTO audit_entries SELECT * FROM forged; DROP TABLE forged"
        );
        sql(&mut conn, forge).await;
        assert_eq!(count().await, before, "{index}");
        match check(&log).await {
            Err(VerifyError::Uncovered { index: found, .. }) => {
                assert_eq!(found.to_string(), index);
            }
            other => panic!("{index}: {other:?}"),
        }
        sql(&mut conn, format!("DELETE FROM audit_entries WHERE idx = {index}")).await;
    }
    check(&log).await.unwrap();
}

#[tokio::test]
async fn missing_swapped_and_foreign_pieces_are_noticed() {
    let log = Log::with_entries(600).await;
    let whole = std::fs::read(&log.path).unwrap();
    let tampered = |text: &'static str| {
        let (log, whole) = (&log, &whole);
        async move {
            std::fs::write(&log.path, whole).unwrap();
            let mut conn = alter(&log.path).await;
            sql(&mut conn, text.into()).await;
            conn.close().await.unwrap();
            check(log).await.expect_err(text).to_string()
        }
    };
    let missing = tampered("DELETE FROM audit_entries WHERE idx = 9").await;
    assert!(missing.contains("entry 9 ") && missing.contains("missing"), "{missing}");
    let last = tampered("DELETE FROM audit_entries WHERE idx = 601").await;
    assert!(last.contains("entry 601 ") && last.contains("missing"), "{last}");
    let shortened =
        tampered("DELETE FROM audit_entries WHERE idx = 601; UPDATE audit_head SET size = 601")
            .await;
    assert!(shortened.contains("truncated"), "{shortened}");
    let swapped = tampered(
        "UPDATE audit_entries SET idx = -1 WHERE idx = 5; UPDATE audit_entries SET idx = 5 WHERE idx = 6; \
         UPDATE audit_entries SET idx = 6 WHERE idx = -1",
    )
    .await;
    assert!(swapped.contains("entry 5 "), "{swapped}");
    let tile = tampered("DELETE FROM audit_tiles WHERE level = 0 AND idx = 1").await;
    assert!(tile.contains("tile 0/1"), "{tile}");
    let tile = tampered("UPDATE audit_tiles SET hashes = zeroblob(64) WHERE level = 1").await;
    assert!(tile.contains("tile 1/0"), "{tile}");
    let tile =
        tampered("UPDATE audit_tiles SET hashes = zeroblob(8192) WHERE level = 0 AND idx = 1")
            .await;
    assert!(tile.contains("entry 256 "), "{tile}");
    let root = tampered("UPDATE audit_head SET root = zeroblob(32)").await;
    assert!(root.contains("head row"), "{root}");
    let unsigned = tampered("DELETE FROM audit_checkpoints").await;
    assert!(unsigned.contains("no signed checkpoint"), "{unsigned}");
    let note = tampered("UPDATE audit_checkpoints SET note = replace(note, '602', '603')").await;
    assert!(note.contains("does not verify"), "{note}");
    std::fs::write(&log.path, &whole).unwrap();
    check(&log).await.unwrap();
}

/// The first thing that is wrong is named, whatever else is wrong behind it and however the work is
/// divided: entries lie in three chunks here.
#[tokio::test]
async fn the_first_of_many_faults_is_named() {
    let log = Log::with_entries(10_000).await;
    let mut conn = alter(&log.path).await;
    let break_at =
        |column: &str, index: u64| format!("UPDATE audit_entries SET {column} WHERE idx = {index}");
    for (text, expected) in [
        ("DELETE FROM audit_entries WHERE idx = 9999".to_owned(), 9_999),
        (break_at("leaf = zeroblob(32)", 9_000), 9_000),
        (
            "UPDATE audit_tiles SET hashes = zeroblob(8192) WHERE level = 0 AND idx = 20".into(),
            5_120,
        ),
        (break_at("kind = 'gap'", 4_500), 4_500),
        ("DELETE FROM audit_entries WHERE idx = 4095".into(), 4_095),
        (break_at("agent_id = NULL", 3), 3),
    ] {
        sql(&mut conn, text.clone()).await;
        assert_eq!(named(check(&log).await, &text).0, expected, "{text}");
    }
}

#[tokio::test]
async fn an_exported_tile_that_is_cut_or_altered_is_noticed() {
    let log = Log::with_entries(600).await;
    let dir = log.dir.path().join("export");
    aegis_audit::export::write_directory(&log.reader().await, &dir).await.unwrap();
    let verified = async || {
        let key = log.signer.verifier().clone();
        verify::verify_directory(&dir, key, None, |_, _| {}).await
    };
    verified().await.unwrap();
    for (name, index) in [("tile/0/001", 256_u64), ("tile/0/002.p/90", 512)] {
        let path = dir.join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 32]).unwrap();
        let last = index + whole.len() as u64 / 32 - 1;
        assert_eq!(named(verified().await, name).0, last, "{name} cut by a hash");
        let mut altered = whole.clone();
        altered[40] ^= 1;
        std::fs::write(&path, &altered).unwrap();
        assert_eq!(named(verified().await, name).0, index + 1, "{name} altered");
        std::fs::write(&path, &whole).unwrap();
    }
    std::fs::remove_file(dir.join("tile/0/001")).unwrap();
    let error = verified().await.unwrap_err().to_string();
    assert!(error.contains("tile 0/1"), "{error}");
}

#[tokio::test]
async fn a_log_cut_anywhere_does_not_verify_and_does_not_open() {
    let log = Log::with_entries(300).await;
    let whole = std::fs::read(&log.path).unwrap();
    let cut = log.dir.path().join("cut.db");
    let saved = std::fs::read(log.saved_checkpoint()).unwrap();
    let mut lengths: Vec<usize> = vec![
        0,
        1,
        15,
        16,
        50,
        99,
        100,
        101,
        4_095,
        4_096,
        4_097,
        whole.len() - 1,
        whole.len() - 4_096,
    ];
    lengths.extend((1..60).map(|i| whole.len() * i / 60));
    for length in lengths {
        std::fs::write(&cut, &whole[..length]).unwrap();
        std::fs::write(beside(&cut, ".checkpoint"), &saved).unwrap();
        let opened = Reader::open_copy(&cut).await;
        let verified = match opened {
            Ok(reader) => verify::verify(&reader, &Trusted::default(), |_, _| {}).await.is_ok(),
            Err(_) => false,
        };
        assert!(!verified, "verified when cut to {length} bytes");
        let place = Location::Sqlite(cut.clone());
        let error = Journal::open(&place, log.options()).await.expect_err("opened");
        assert!(error.to_string().contains("cut.db"), "{length}: {error}");
        for ending in ["", "-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(beside(&cut, ending));
        }
    }
}

#[tokio::test]
async fn a_rollback_is_noticed_by_the_saved_checkpoint_and_by_a_witness() {
    let log = Log::with_entries(100).await;
    let old = std::fs::read(&log.path).unwrap();
    let old_note = std::fs::read(log.saved_checkpoint()).unwrap();
    let journal = log.open().await;
    fill(&journal, 50).await;
    journal.close().await.unwrap();
    let kept = std::fs::read_to_string(log.saved_checkpoint()).unwrap();
    let witness = log.dir.path().join("witness");
    std::fs::write(&witness, &kept).unwrap();

    std::fs::write(&log.path, &old).unwrap();
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(matches!(error, StoreError::Rollback { .. }), "{error}");
    assert!(error.to_string().contains("covers 154 entries and the log has 102"), "{error}");

    // Whoever rolls back the saved checkpoint too meets the witness.
    std::fs::write(log.saved_checkpoint(), &old_note).unwrap();
    let mut options = log.options();
    options.witnesses.push(witness.clone());
    let error = Journal::open(&log.place(), options).await.unwrap_err();
    assert!(matches!(error, StoreError::Rollback { .. }), "{error}");
    let trusted =
        Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: Some(kept.clone()) };
    let error = verify::verify(&log.reader().await, &trusted, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::Truncated { size: 102, known: 154, .. }), "{error}");

    // Without a witness the log goes on, and is another one from there: kept checkpoints tell.
    let journal = log.open().await;
    fill(&journal, 80).await;
    journal.close().await.unwrap();
    let error = verify::verify(&log.reader().await, &trusted, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::Forked { size: 154, .. }), "{error}");
    std::fs::write(log.saved_checkpoint(), &kept).unwrap();
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(error.to_string().contains("not those"), "{error}");
}

#[tokio::test]
async fn a_second_writer_is_told_so() {
    let log = Log::new();
    let journal = log.open().await;
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&log.path.display().to_string()), "{error}");
    journal.close().await.unwrap();
    log.open().await.close().await.unwrap();
}

#[tokio::test]
async fn files_that_are_not_ours_are_left_alone() {
    let log = Log::new();
    let text = b"not a database, and longer than a header of one hundred bytes would be, by a few more words of text";
    std::fs::write(&log.path, text).unwrap();
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(error.to_string().contains("not a SQLite database"), "{error}");
    assert_eq!(std::fs::read(&log.path).unwrap(), text);
    std::fs::remove_file(&log.path).unwrap();
    let error = Reader::open(&log.place()).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    let options = SqliteConnectOptions::new().filename(&log.path).create_if_missing(true);
    let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
    sql(&mut conn, "CREATE TABLE theirs (x)".into()).await;
    conn.close().await.unwrap();
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(error.to_string().contains("another application"), "{error}");
}

#[tokio::test]
async fn newer_schemas_and_foreign_keys_are_refused() {
    let log = Log::with_entries(2).await;
    let mut options = log.options();
    options.signer = aegis_audit::Signer::from_seed(crate::fixture::ORIGIN, &[8; 32]).unwrap();
    let error = Journal::open(&log.place(), options).await.unwrap_err();
    assert!(matches!(error, StoreError::ForeignKey { .. }), "{error}");
    let mut conn = alter(&log.path).await;
    sql(&mut conn, "PRAGMA user_version = 3; UPDATE audit_head SET schema = 3".into()).await;
    conn.close().await.unwrap();
    let error = Journal::open(&log.place(), log.options()).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 3, .. }), "{error}");
    let error = Reader::open(&log.place()).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 3, .. }), "{error}");
}

#[tokio::test]
async fn the_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let log = Log::new();
    std::fs::write(&log.path, b"").unwrap();
    std::fs::set_permissions(&log.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let journal = log.open().await;
    fill(&journal, 3).await;
    for ending in ["", "-wal", "-shm", ".lock", ".checkpoint", ".redo0", ".redo1"] {
        let path = beside(&log.path, ending);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    journal.close().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_of_another_key_is_not_evidence() {
    let log = Log::with_entries(5).await;
    let other = aegis_audit::Signer::from_seed(crate::fixture::ORIGIN, &[8; 32]).unwrap();
    let head = log.reader().await.head().await.unwrap();
    let kept = Some(checkpoint::sign(&other, &head));
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: kept };
    let error = verify::verify(&log.reader().await, &trusted, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::Checkpoint { .. }), "{error}");
}
