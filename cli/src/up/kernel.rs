//! Where the daemon serves the kernel API: a unix socket, and loopback if that is asked for.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aegis_sidecar::kernel_api::{Door, Token};
use anyhow::Context as _;
use tokio::net::TcpListener;

use super::{Args, daemon::bind_socket};

/// What was bound.
pub(super) struct Doors {
    pub(super) all: Vec<Door>,
    /// Where on loopback.
    pub(super) address: Option<SocketAddr>,
}

/// Binds `kernel.sock`, which everybody who can enter its folder may connect to if the folder is for
/// others: who they are is attested. On loopback a token is asked for too.
pub(super) async fn doors(args: &Args, sockets: &Path) -> anyhow::Result<Doors> {
    let socket = bind_socket(&sockets.join("kernel.sock"), args.sockets.is_some())?;
    let mut doors = Doors { all: vec![Door::Unix(socket)], address: None };
    let Some(address) = args.kernel_address else { return Ok(doors) };
    anyhow::ensure!(
        address.ip().is_loopback(),
        "--kernel-address {address} is not of loopback, and callers from elsewhere cannot be attested; give 127.0.0.1 and a port"
    );
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for the kernel API"))?;
    doors.address = Some(listener.local_addr()?);
    doors.all.push(Door::Loopback(listener, token(&args.state.join("kernel.token"))?));
    Ok(doors)
}

/// The token in a file that only its owner can read; made if there is none.
fn token(path: &Path) -> anyhow::Result<Token> {
    let unreadable = || format!("cannot read {}", path.display());
    let text = match File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text).with_context(unreadable)?;
            text.trim().to_owned()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = hex::encode(rand::random::<[u8; 32]>());
            let mut options = File::options();
            let unwritable = || format!("cannot write {}", path.display());
            let file = options.write(true).create_new(true).mode(0o600).open(path);
            writeln!(file.with_context(unwritable)?, "{text}").with_context(unwritable)?;
            text
        }
        Err(error) => return Err(error).with_context(unreadable),
    };
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path)?.permissions());
    anyhow::ensure!(
        mode & 0o007 == 0,
        "{} can be read by everybody; run `chmod o-rwx {}`",
        path.display(),
        path.display()
    );
    anyhow::ensure!(
        text.len() >= 32,
        "the token in {} is shorter than 32 characters; remove the file, and a new one is made",
        path.display()
    );
    Ok(Token::new(&text))
}
