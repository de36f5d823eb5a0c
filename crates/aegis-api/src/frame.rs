//! Frames between a stdio wrapper and the daemon: one byte for the kind, four for the length
//! (big-endian), then the payload.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest payload. Bytes.
pub const MAX_FRAME_BYTES: u32 = 64 << 20;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// From or to the client: the wrapper's own standard streams.
    Client,
    /// From or to the server: the wrapped command's standard streams.
    Server,
    /// The client has closed its stream.
    ClientClosed,
    /// The server has closed its stream or ended.
    ServerClosed,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which way.
    pub channel: Channel,
    /// One message, without its newline.
    pub payload: Vec<u8>,
}

impl Channel {
    const fn code(self) -> u8 {
        match self {
            Self::Client => b'c',
            Self::Server => b's',
            Self::ClientClosed => b'C',
            Self::ServerClosed => b'S',
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            b'c' => Some(Self::Client),
            b's' => Some(Self::Server),
            b'C' => Some(Self::ClientClosed),
            b'S' => Some(Self::ServerClosed),
            _ => None,
        }
    }
}

/// Reads one frame; `None` at a clean end.
///
/// # Errors
/// When the stream ends within a frame, or what comes is not one.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Frame>> {
    let invalid = |message: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, message);
    let code = match stream.read_u8().await {
        Ok(code) => code,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let channel =
        Channel::from_code(code).ok_or_else(|| invalid("not a frame of the wrapper protocol"))?;
    let length = stream.read_u32().await?;
    if length > MAX_FRAME_BYTES {
        return Err(invalid("the frame is larger than the limit"));
    }
    let mut payload = vec![0; usize::try_from(length).map_err(|_| invalid("too long"))?];
    stream.read_exact(&mut payload).await?;
    Ok(Some(Frame { channel, payload }))
}

/// Writes one frame and flushes it.
///
/// # Errors
/// When the stream does, or the payload is larger than [`MAX_FRAME_BYTES`].
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    channel: Channel,
    payload: &[u8],
) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|length| *length <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, "the message is larger than a frame")
    })?;
    let mut head = [0; 5];
    let [code, rest @ ..] = &mut head;
    *code = channel.code();
    *rest = length.to_be_bytes();
    stream.write_all(&head).await?;
    stream.write_all(payload).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_round_trip_and_garbage_is_refused() {
        let mut bytes = Vec::new();
        write(&mut bytes, Channel::Client, b"{}").await.unwrap();
        write(&mut bytes, Channel::ServerClosed, b"").await.unwrap();
        let mut stream = bytes.as_slice();
        let first = read(&mut stream).await.unwrap().unwrap();
        assert_eq!(first, Frame { channel: Channel::Client, payload: b"{}".to_vec() });
        assert_eq!(read(&mut stream).await.unwrap().unwrap().channel, Channel::ServerClosed);
        assert_eq!(read(&mut stream).await.unwrap(), None);
        assert!(read(&mut b"xxxxx".as_slice()).await.is_err());
        assert!(read(&mut b"c\xff\xff\xff\xff".as_slice()).await.is_err());
        assert!(read(&mut b"c\0\0\0\x05ab".as_slice()).await.is_err());
    }
}
