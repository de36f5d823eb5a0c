//! The ledger of a run, read and verified offline: it holds every call, and holds together.

use std::path::Path;

use aegis_audit::{Kind, Outcome, Reader, verify};
use anyhow::ensure;

/// Verifies a closed ledger and compares what it holds with the calls that were `sent` in the rounds.
pub fn check(path: &Path, sent: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let reader = Reader::open_copy(path).await?;
        let report = verify::verify(&reader, &verify::Trusted::default(), |_, _| {}).await?;
        let (mut allowed, mut denied, mut outcomes, mut lost, mut at) = (0_u64, 0_u64, 0_u64, 0, 0);
        while at < report.head.size {
            for stored in reader.entries(at..report.head.size.min(at + 1_000)).await? {
                let entry = stored.entry()?;
                match (entry.kind, entry.result) {
                    (Kind::Decision, Outcome::Allow) => allowed += 1,
                    (Kind::Decision, _) => denied += 1,
                    (Kind::Outcome, _) => outcomes += 1,
                    (Kind::Gap, _) => lost += entry.detail.get("lost").and_then(serde_json::Value::as_u64).unwrap_or(0),
                    _ => {}
                }
                at = stored.index + 1;
            }
        }
        ensure!(allowed + denied + lost >= sent, "{sent} calls were made, and the ledger tells of {}", allowed + denied + lost);
        ensure!(allowed == outcomes || lost > 0, "{allowed} permits and {outcomes} outcomes");
        println!(
            "ledger {}: verified, {} entries; {allowed} permits, {denied} refusals, {outcomes} outcomes, {lost} counted as lost",
            path.parent().and_then(Path::parent).and_then(Path::file_name).unwrap_or_default().display(),
            report.head.size
        );
        Ok(())
    })
}
