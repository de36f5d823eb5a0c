"""HTTP/1.1 as the kernel API speaks it, without I/O: bytes to send, and a reader for what comes.

Small on purpose: one request at a time, answers with a `content-length`, events until the end of the
connection. Whatever is not that is an error, and an error is no permission.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from .errors import Unavailable
from .model import Event

MAX_HEAD = 64 * 1024
MAX_BODY = 16 * 1024 * 1024
MAX_WAIT = 60.0
"""How long one question is held at most. Seconds."""
SERVICE = Path("/run/aegis/kernel.sock")
"""That of a daemon under a user of its own."""


@dataclass(frozen=True)
class Place:
    """Where the kernel API is: a unix socket, or an address of loopback with its token."""

    socket: str | None
    host: str = "localhost"
    port: int = 0
    token: str | None = None

    def __str__(self) -> str:
        return self.socket or f"http://{self.host}:{self.port}"

    def request(self, method: str, path: str, body: bytes = b"", wait: float = 0.0, *, stream: bool = False) -> bytes:
        """A whole request."""
        # An answer without an end, in the version that has no chunks.
        version = "1.0" if stream else "1.1"
        head = [f"{method} {path} HTTP/{version}"]
        head.append("host: localhost" if self.socket else f"host: {self.host}:{self.port}")
        if self.token is not None:
            head.append(f"authorization: Bearer {self.token}")
        if body:
            head += ["content-type: application/json", f"content-length: {len(body)}"]
        if wait > 0:
            head.append(f"prefer: wait={max(1, round(min(wait, MAX_WAIT)))}")
        return "\r\n".join([*head, "\r\n"]).encode() + body


def place(socket: str | os.PathLike[str] | None, url: str | None, token: str | None) -> Place:
    """Where to ask: what was given, else what the environment says, else the daemon's default.

    `AEGIS_KERNEL_SOCKET`, or `AEGIS_KERNEL_URL` with `AEGIS_KERNEL_TOKEN`; then `kernel.sock` in
    `AEGIS_SOCKETS`, `AEGIS_STATE` or the default state folder.
    """
    environment = os.environ
    if socket is None and url is None:
        socket, url = environment.get("AEGIS_KERNEL_SOCKET"), environment.get("AEGIS_KERNEL_URL")
    if socket is not None:
        return Place(os.fspath(socket))
    if url is None:
        return Place(str(_default_socket()))
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None or parts.port is None:
        raise ValueError(f"{url!r} is no address of the kernel API; give one such as http://127.0.0.1:7102")
    return Place(None, parts.hostname, parts.port, token or environment.get("AEGIS_KERNEL_TOKEN"))


def _default_socket() -> Path:
    """That of one's own daemon, or of the machine's."""
    folder = os.environ.get("AEGIS_SOCKETS") or os.environ.get("AEGIS_STATE")
    if folder:
        return Path(folder) / "kernel.sock"
    base = os.environ.get("XDG_STATE_HOME")
    own = (Path(base) if base else Path.home() / ".local" / "state") / "aegis" / "kernel.sock"
    return SERVICE if not own.exists() and SERVICE.exists() else own


class Answer:
    """Reads one answer from the bytes as they come."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.closes = False
        self._buffer = bytearray()
        self._length: int | None = None

    def feed(self, data: bytes) -> bool:
        """Takes what was received; whether the answer is whole."""
        if not data:
            raise Unavailable("the Aegis daemon closed the connection before its answer")
        self._buffer += data
        if self._length is None:
            self._head()
        if self._length is None or len(self._buffer) < self._length:
            return False
        if len(self._buffer) > self._length:
            raise Unavailable("the Aegis daemon sent more than it was asked for")
        self.body = bytes(self._buffer)
        return True

    def _head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise Unavailable("what answers is no Aegis daemon: its answer has no end")
            return
        status, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        self.status = read_status(status)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self.closes = headers.get(b"connection", b"").lower() == b"close"
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise Unavailable("what answers is no Aegis daemon: its answer has no length")
        self._length = int(length)
        del self._buffer[: end + 4]


def read_status(line: bytes) -> int:
    """The status of an answer's first line."""
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise Unavailable("what answers is no Aegis daemon: it does not speak HTTP")
    return int(parts[1])


class Events:
    """Reads server-sent events from the bytes as they come; the answer's head first."""

    def __init__(self) -> None:
        self.status = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """The events that are whole now."""
        self._buffer += data
        if self.status == 0 and not self._head():
            return []
        events = []
        while (end := self._buffer.find(b"\n\n")) >= 0:
            block = bytes(self._buffer[:end]).decode()
            del self._buffer[: end + 2]
            event = _event(block)
            if event is not None:
                events.append(event)
        if len(self._buffer) > MAX_BODY:
            raise Unavailable("the Aegis daemon sends an event without an end")
        return events

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.status = read_status(bytes(self._buffer).split(b"\r\n", 1)[0])
        del self._buffer[: end + 4]
        if self.status != 200:
            raise Unavailable(f"the Aegis daemon gives no events: it answered {self.status}")
        return True


def _event(block: str) -> Event | None:
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, colon, value = line.partition(":")
        if name and colon:
            fields[name] = value.removeprefix(" ")
    if "data" not in fields:
        return None
    return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
