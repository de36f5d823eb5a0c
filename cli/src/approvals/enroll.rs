//! `aegis approvals enroll`: a second factor that confirms approvals (RFC 6238).
//!
//! The secret is shown once, to be put into an authenticator that is not on this machine. It
//! replaces no other: whoever may do that deletes the file first.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// Make the secret of a second factor for approvals; run it as the daemon's user
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis approvals enroll   # then restart `aegis up`")]
pub(crate) struct Args {
    /// The daemon's state folder
    #[arg(long, env = "AEGIS_STATE", default_value_os_t = crate::default_state(), hide_env_values = true)]
    state: PathBuf,
}

/// As long as the hash, as RFC 4226 §4 (R6) recommends.
const SECRET_BYTES: usize = 20;

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let secret: [u8; SECRET_BYTES] = rand::random();
    let file = args.state.join("totp.secret");
    save(&file, &hex::encode(secret))?;
    let encoded = base32(&secret);
    let uri = format!("otpauth://totp/Aegis:approvals?secret={encoded}&issuer=Aegis");
    match cx.format {
        Format::Json => output::json(&json!({ "secret": encoded, "uri": uri, "file": file }))?,
        Format::Text => {
            let mut text = Text::new();
            text.toned(Tone::Good, format!("wrote {}", file.display()));
            text.line("Put this into an authenticator that is not on this machine; it is not shown again:");
            text.items(&[format!("secret  {encoded}"), format!("URI     {uri}")]);
            text.line("Then restart `aegis up`, which reads it at its start.");
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}

fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "a second factor is enrolled already; to replace it, delete {} and enroll again",
            file.display()
        ),
        other => other.with_context(|| format!("cannot write {}", file.display()))?,
    };
    opened
        .write_all(text.as_bytes())
        .and_then(|()| opened.sync_all())
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
