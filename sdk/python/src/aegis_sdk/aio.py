"""The client for asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from typing import Any, AsyncIterator, Mapping

from .errors import AegisError, Unavailable
from .model import LOCAL, Decision, Event, Outcome, Question, object_of, outcome_body, refusal, tool_call
from .wire import MAX_WAIT, Answer, Events, Place, place

log = logging.getLogger("aegis_sdk")
_CHUNK = 64 * 1024


class AsyncAegis:
    """As `Aegis`, for asyncio. Connections belong to the loop that opened them, and to its process."""

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
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None

    async def evaluate(
        self,
        tool: str | Question,
        arguments: Mapping[str, Any] | None = None,
        *,
        server: str = LOCAL,
        wait: float = 0.0,
    ) -> Decision:
        """As `Aegis.evaluate`."""
        question = tool if isinstance(tool, Question) else tool_call(tool, arguments, server=server)
        body, until = question.body(), time.monotonic() + wait
        while True:
            left = min(until - time.monotonic(), MAX_WAIT)
            decision = Decision.read(*await self._ask("POST", "/access/v1/evaluation", body, max(0.0, left)))
            if decision.verdict != "require_approval" or decision.approval is None or time.monotonic() + 1 >= until:
                return decision
            body = Question(**{**vars(question), "approval": decision.approval}).body()

    async def report(self, decision: Decision, outcome: Outcome) -> None:
        """As `Aegis.report`."""
        if decision.decision_id is None:
            return
        status, body = await self._ask("POST", "/v1/outcomes", outcome_body(decision.decision_id, outcome))
        if status != 200:
            raise refusal(status, object_of(body))

    async def conclude(self, decision: Decision, outcome: Outcome) -> None:
        """As `Aegis.conclude`."""
        try:
            await self.report(decision, outcome)
        except AegisError as error:
            log.warning("the outcome of decision %s was not reported: %s", decision.decision_id, error)

    async def events(self) -> AsyncIterator[Event]:
        """As `Aegis.events`."""
        connection = await _Connection.open(self.place, self.timeout)
        try:
            await connection.send(self.place.request("GET", "/v1/events", stream=True))
            reader = Events()
            while data := await connection.receive():
                for event in reader.feed(data):
                    yield event
        finally:
            connection.close()

    async def close(self) -> None:
        """Closes what is kept open."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def __aenter__(self) -> AsyncAegis:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, method: str, path: str, body: bytes, wait: float = 0.0) -> tuple[int, bytes]:
        request = self.place.request(method, path, body, wait)
        connection = await self._take()
        try:
            async with asyncio.timeout(self.timeout + wait) if hasattr(asyncio, "timeout") else _Never():
                await connection.send(request)
                answer = Answer()
                while not answer.feed(await connection.receive()):
                    pass
        except TimeoutError as error:
            connection.close()
            raise Unavailable(f"the Aegis daemon did not answer within {self.timeout + wait} s") from error
        except BaseException:
            # Half of an exchange is no state to reuse.
            connection.close()
            raise
        if answer.closes:
            connection.close()
        else:
            self._idle.append(connection)
        return answer.status, answer.body

    async def _take(self) -> _Connection:
        owner = (os.getpid(), asyncio.get_running_loop())
        if self._owner != owner:
            # A connection speaks for the process that opened it, and works in its loop alone.
            self._idle, self._owner = [], owner
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return await _Connection.open(self.place, self.timeout)


class _Never:
    """Python 3.10 has no `asyncio.timeout`: there, whoever calls limits the time."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, to: Place, timeout: float) -> _Connection:
        try:
            if to.socket is not None:
                opening = asyncio.open_unix_connection(to.socket)
            else:
                opening = asyncio.open_connection(to.host, to.port)
            return cls(*await asyncio.wait_for(opening, timeout))
        except (OSError, asyncio.TimeoutError) as error:
            raise Unavailable(f"no Aegis daemon answers at {to} ({error}); start one with `aegis up`") from error

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Unavailable(f"the Aegis daemon could not be asked: {error}") from error

    async def receive(self) -> bytes:
        try:
            return await self._reader.read(_CHUNK)
        except OSError as error:
            raise Unavailable(f"the Aegis daemon did not answer: {error}") from error

    def is_open(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        with suppress(RuntimeError):
            self._writer.close()
