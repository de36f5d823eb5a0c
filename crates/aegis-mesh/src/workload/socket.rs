//! The unix socket of the Workload API.
//!
//! Anybody who sees it may connect (mode 0666): the socket's mode could only tell users apart, while
//! a source recognises agents of one user, so it alone decides. The directory must not be
//! writable by others, because whoever can replace the socket can hand out identities of their own.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};

use aegis_api::workload::FILE_DESCRIPTORS;

use super::{Source, WorkloadApi};
use crate::limits::{Held, Hold};

/// Connections of one user at a time.
const MAX_CONNECTIONS: usize = 256;
/// Requests in flight on one connection.
const MAX_CONCURRENT: u32 = 32;
/// How long to wait when no connection can be accepted, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The operating system refuses.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it says.
        cause: io::Error,
    },
    /// Another process answers there.
    #[error("another process serves {}; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Not a socket.
    #[error("{} is not a socket; move it away", .0.display())]
    NotASocket(PathBuf),
    /// Others could replace the socket.
    #[error("others can replace files in {}; run `chmod go-w {}`", .0.display(), .0.display())]
    Exposed(PathBuf),
    /// The server fails.
    #[error("the Workload API stopped: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The reflection service cannot describe the API.
    #[error("gRPC reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A bound socket; its file goes when this does.
#[derive(Debug)]
pub struct WorkloadSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
}

/// A connection whose peer the kernel has named.
struct PeerStream<P> {
    stream: UnixStream,
    peer: Arc<P>,
    _hold: Hold<u32>,
}

/// Who is at the other end, for the handlers.
pub(super) struct Connection<P>(pub(super) Arc<P>);

impl<P> Clone for Connection<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenError {
    let path = path.to_owned();
    move |cause| ListenError::Io { action, path, cause }
}

impl WorkloadSocket {
    /// Binds the socket, replacing one that a dead process left behind.
    ///
    /// # Errors
    /// When the directory is exposed, or something else is at that path.
    pub async fn bind(path: impl Into<PathBuf>) -> Result<Self, ListenError> {
        let path = path.into();
        if let Some(directory) = path.parent() {
            prepare_directory(directory)?;
        }
        Self::bind_within(path).await
    }

    /// As [`bind`](Self::bind), in a folder whose mode says nothing: a pod's volume that is given to
    /// everybody else to read only.
    ///
    /// # Errors
    /// When something else is at that path, or the folder is not there.
    pub async fn bind_within(path: impl Into<PathBuf>) -> Result<Self, ListenError> {
        let path = path.into();
        remove_stale(&path).await?;
        let listener = UnixListener::bind(&path).map_err(io_error("bind", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))
            .map_err(io_error("open to everybody", &path))?;
        Ok(Self { path, listener: Arc::new(listener) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value for `SPIFFE_ENDPOINT_SOCKET`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Serves the Workload API with what `source` has until `stop` is cancelled.
    ///
    /// # Errors
    /// When the server cannot run.
    pub async fn serve(
        self,
        source: impl Source,
        stop: CancellationToken,
    ) -> Result<(), ListenError> {
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
        };
        let source = Arc::new(source);
        let api = WorkloadApi::new(Arc::clone(&source), stop.clone());
        Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT)
            .concurrency_limit_per_connection(MAX_CONCURRENT as usize)
            .http2_max_header_list_size(16 * 1024)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(api.into_service())
            .add_service(descriptors().build_v1()?)
            .add_service(descriptors().build_v1alpha()?)
            .serve_with_incoming_shutdown(self.accept(source, stop.clone()), stop.cancelled())
            .await?;
        Ok(())
    }

    fn accept<S: Source>(
        &self,
        source: Arc<S>,
        stop: CancellationToken,
    ) -> impl Stream<Item = io::Result<PeerStream<S::Peer>>> + use<S> {
        let listener = Arc::clone(&self.listener);
        let (send, accepted) = mpsc::channel(16);
        let held = Held::new(MAX_CONNECTIONS);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = listener.accept() => next,
                    () = stop.cancelled() => return,
                    () = send.closed() => return,
                };
                let stream = match next {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the Workload API could not accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let Some(accepted) = identified(&*source, stream, &held) else { continue };
                if send.send(Ok(accepted)).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(accepted)
    }
}

/// A connection that the kernel vouches for; any other is dropped.
fn identified<S: Source>(
    source: &S,
    stream: UnixStream,
    held: &Held<u32>,
) -> Option<PeerStream<S::Peer>> {
    let peer = match source.connected(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::info!(%error, "a connection to the Workload API was dropped");
            return None;
        }
    };
    let user = S::user(&peer);
    let Some(hold) = held.take(user) else {
        tracing::warn!(user, "a user holds too many connections to the Workload API");
        return None;
    };
    Some(PeerStream { stream, peer: Arc::new(peer), _hold: hold })
}

fn prepare_directory(directory: &Path) -> Result<(), ListenError> {
    if directory.as_os_str().is_empty() {
        return Ok(());
    }
    if !directory.exists() {
        let create = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        create.map_err(io_error("create", directory))?;
    }
    let mode = fs::metadata(directory).map_err(io_error("inspect", directory))?.mode();
    let sticky = mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Err(ListenError::Exposed(directory.to_owned()));
    }
    Ok(())
}

async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io_error("remove", path))
        }
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

impl Drop for WorkloadSocket {
    fn drop(&mut self) {
        // Nothing to be done if it has gone already.
        let _ = fs::remove_file(&self.path);
    }
}

impl<P: Send + Sync + 'static> Connected for PeerStream<P> {
    type ConnectInfo = Connection<P>;

    fn connect_info(&self) -> Connection<P> {
        Connection(Arc::clone(&self.peer))
    }
}

impl<P> AsyncRead for PeerStream<P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<P> AsyncWrite for PeerStream<P> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
