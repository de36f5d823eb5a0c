"""The client for code that waits."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from typing import Any, Iterator, Mapping

from .errors import AegisError, Unavailable
from .model import LOCAL, Decision, Event, Outcome, Question, object_of, outcome_body, refusal, tool_call
from .wire import MAX_WAIT, Answer, Events, Place, place

log = logging.getLogger("aegis_sdk")
_CHUNK = 64 * 1024


class Aegis:
    """Asks the daemon of this machine. Safe to share among threads; connections are kept and reused.

    `timeout` is how long the daemon may take to answer; no answer in time is no permission.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.place: Place = place(socket, url, token)
        self.timeout = timeout
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def evaluate(
        self,
        tool: str | Question,
        arguments: Mapping[str, Any] | None = None,
        *,
        server: str = LOCAL,
        wait: float = 0.0,
    ) -> Decision:
        """Asks whether a call may happen now, and records the answer.

        Whoever asks promises to act on `Decision.allowed` alone and, if it is so, to report the
        outcome. `wait` is how many seconds a human may take. Raises `Unavailable` when the daemon
        cannot be asked, and `Denied` for what is no question.
        """
        question = tool if isinstance(tool, Question) else tool_call(tool, arguments, server=server)
        body, until = question.body(), time.monotonic() + wait
        while True:
            left = min(until - time.monotonic(), MAX_WAIT)
            decision = Decision.read(*self._ask("POST", "/access/v1/evaluation", body, max(0.0, left)))
            if decision.verdict != "require_approval" or decision.approval is None or time.monotonic() + 1 >= until:
                return decision
            # It was held as long as one request may be. What has been decided meanwhile counts.
            body = Question(**{**vars(question), "approval": decision.approval}).body()

    def report(self, decision: Decision, outcome: Outcome) -> None:
        """Reports how an allowed action ended, once. A report that is lost counts as `unknown`."""
        if decision.decision_id is None:
            return
        status, body = self._ask("POST", "/v1/outcomes", outcome_body(decision.decision_id, outcome))
        if status != 200:
            raise refusal(status, object_of(body))

    def conclude(self, decision: Decision, outcome: Outcome) -> None:
        """As `report`, for what has happened already: trouble is logged and not raised."""
        try:
            self.report(decision, outcome)
        except AegisError as error:
            log.warning("the outcome of decision %s was not reported: %s", decision.decision_id, error)

    def events(self) -> Iterator[Event]:
        """What happens to the policies and to this agent, from now on, until the daemon ends."""
        connection = _Connection(self.place, None)
        try:
            connection.send(self.place.request("GET", "/v1/events", stream=True))
            reader = Events()
            while data := connection.receive():
                yield from reader.feed(data)
        finally:
            connection.close()

    def close(self) -> None:
        """Closes what is kept open."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Aegis:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes, wait: float = 0.0) -> tuple[int, bytes]:
        request = self.place.request(method, path, body, wait)
        connection = self._take()
        try:
            connection.deadline(self.timeout + wait)
            connection.send(request)
            answer = Answer()
            while not answer.feed(connection.receive()):
                pass
        except BaseException:
            # Half of an exchange is no state to reuse.
            connection.close()
            raise
        if answer.closes:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return answer.status, answer.body

    def _take(self) -> _Connection:
        with self._lock:
            if self._process != os.getpid():
                # A connection speaks for the process that opened it, and a child is another one.
                for connection in self._idle:
                    connection.close()
                self._idle, self._process = [], os.getpid()
            while self._idle:
                connection = self._idle.pop()
                if connection.is_open():
                    return connection
                connection.close()
        return _Connection(self.place, self.timeout)


class _Connection:
    def __init__(self, to: Place, timeout: float | None) -> None:
        try:
            if to.socket is not None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(timeout)
                self._socket.connect(to.socket)
            else:
                self._socket = socket.create_connection((to.host, to.port), timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Unavailable(f"no Aegis daemon answers at {to} ({error}); start one with `aegis up`") from error

    def deadline(self, timeout: float) -> None:
        self._socket.settimeout(timeout)

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Unavailable(f"the Aegis daemon could not be asked: {error}") from error

    def receive(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK)
        except OSError as error:
            raise Unavailable(f"the Aegis daemon did not answer: {error}") from error

    def is_open(self) -> bool:
        """Nothing is to come on an idle connection but its end."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()
