//! `aegis approvals enroll`: a second factor that confirms approvals (RFC 6238).
//!
//! The secret is shown once, to be put into an authenticator that is not on this machine. It counts
//! only once a code of that authenticator has confirmed it: a slip of the pen would otherwise lock
//! people out. It replaces no other: whoever may do that deletes the file first.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, IsTerminal as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aegis_core::Timestamp;
use aegis_kernel::totp::Totp;
use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// Make the secret of a second factor for approvals, and confirm it; run it as the daemon's user
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis approvals enroll                    # shows the secret, and asks for a code\n  aegis approvals enroll --confirm 123456   # where nobody could be asked; then restart `aegis up`"
)]
pub(crate) struct Args {
    /// The daemon's state folder
    #[arg(long, env = "AEGIS_STATE", default_value_os_t = crate::default_state(), hide_env_values = true)]
    state: PathBuf,
    /// A code of the authenticator that has the secret now: from here on the secret counts
    #[arg(long, value_name = "CODE")]
    confirm: Option<String>,
}

/// As long as the hash, as RFC 4226 §4 (R6) recommends.
const SECRET_BYTES: usize = 20;
/// How often a person may mistype.
const TRIES: usize = 3;

/// The two files of a secret: before it is confirmed, and from then on.
struct Files {
    pending: PathBuf,
    enrolled: PathBuf,
}

pub(crate) fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let files = Files {
        pending: args.state.join("totp.pending"),
        enrolled: args.state.join("totp.secret"),
    };
    ensure!(
        !files.enrolled.exists(),
        "a second factor is enrolled already; to replace it, delete {} and enroll again",
        files.enrolled.display()
    );
    if let Some(code) = &args.confirm {
        files.confirm(code)?;
        return confirmed(&files, cx);
    }
    let secret: [u8; SECRET_BYTES] = rand::random();
    save(&files.pending, &hex::encode(secret))?;
    show(&secret, cx)?;
    if cx.format == Format::Text && io::stdin().is_terminal() && io::stdout().is_terminal() {
        ask(&files)?;
        return confirmed(&files, cx);
    }
    Ok(Outcome::Done)
}

fn show(secret: &[u8], cx: &Context) -> anyhow::Result<()> {
    let encoded = base32(secret);
    let uri = format!("otpauth://totp/Aegis:approvals?secret={encoded}&issuer=Aegis");
    if cx.format == Format::Json {
        return output::json(&json!({ "secret": encoded, "uri": uri, "confirmed": false }));
    }
    let mut text = Text::new();
    text.line("Put this into an authenticator that is not on this machine; it is not shown again:");
    text.items(&[format!("secret  {encoded}"), format!("URI     {uri}")]);
    text.line("It counts once a code of the authenticator confirms it: `aegis approvals enroll --confirm CODE`.");
    text.print()
}

/// Asks until a code fits.
fn ask(files: &Files) -> anyhow::Result<()> {
    for left in (0..TRIES).rev() {
        output::emit("Code: ")?;
        let mut line = String::new();
        io::stdin().read_line(&mut line).context("cannot read the code")?;
        match files.confirm(line.trim()) {
            Err(error) if left > 0 => writeln!(io::stderr(), "aegis: {error:#}")?,
            other => return other,
        }
    }
    Ok(())
}

fn confirmed(files: &Files, cx: &Context) -> anyhow::Result<Outcome> {
    match cx.format {
        Format::Json => output::json(&json!({ "confirmed": true, "file": files.enrolled }))?,
        Format::Text => {
            let mut text = Text::new();
            text.toned(Tone::Good, format!("confirmed; wrote {}", files.enrolled.display()));
            text.line("Now restart `aegis up`, which reads it at its start.");
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}

impl Files {
    /// Lets the secret count if the code is one of it.
    fn confirm(&self, code: &str) -> anyhow::Result<()> {
        let text = match fs::read_to_string(&self.pending) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("no secret waits to be confirmed; make one with `aegis approvals enroll`")
            }
            read => read.with_context(|| format!("cannot read {}", self.pending.display()))?,
        };
        let secret = hex::decode(text.trim()).ok().and_then(|secret| Totp::new(&secret));
        let mut totp = secret.with_context(|| {
            format!("{} holds no secret; delete it and enroll again", self.pending.display())
        })?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = Timestamp::from_secs(since.unwrap_or_default().as_secs());
        ensure!(
            totp.verify(code, now),
            "the code is not one of this secret now; compare the clocks, and try the next one"
        );
        fs::rename(&self.pending, &self.enrolled)
            .with_context(|| format!("cannot write {}", self.enrolled.display()))
    }
}

/// Writes a secret for the owner only, in place of one that was never confirmed.
fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", file.display()));
        }
        _ => {}
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    opened
        .and_then(|mut opened| opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// RFC 4648 §6, without padding: what authenticators take.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut out, mut window, mut bits) = (String::new(), 0_u32, 0);
    for byte in bytes {
        window = (window << 8 | u32::from(*byte)) & 0xfff;
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.extend(letter(ALPHABET, window >> bits));
        }
    }
    if bits > 0 {
        out.extend(letter(ALPHABET, window << (5 - bits)));
    }
    out
}

fn letter(alphabet: &[u8; 32], number: u32) -> Option<char> {
    let at = usize::try_from(number & 31).ok()?;
    alphabet.get(at).copied().map(char::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648 §10, without the padding.
    #[test]
    fn rfc_4648_vectors() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(plain.as_bytes()), encoded);
        }
    }
}
