//! `cargo run -p xtask` prints the edges table for ARCHITECTURE.md.

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() -> anyhow::Result<()> {
    print!("{}", xtask::table(&xtask::edges()?));
    Ok(())
}
