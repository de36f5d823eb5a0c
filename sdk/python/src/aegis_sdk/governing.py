"""Functions that ask before they run."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from typing import Any, Awaitable, Callable, Mapping, TypeVar, cast, overload

from .aio import AsyncAegis
from .client import Aegis
from .errors import Denied
from .model import LOCAL, Question, tool_call

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Judged = Callable[..., Mapping[str, Any]]

_shared: dict[str, Any] = {}
_lock = threading.Lock()


def shared() -> Aegis:
    """The client of functions that were given none."""
    with _lock:
        return cast(Aegis, _shared.setdefault("sync", Aegis()))


def shared_async() -> AsyncAegis:
    """The same for coroutine functions."""
    with _lock:
        return cast(AsyncAegis, _shared.setdefault("async", AsyncAegis()))


@overload
def govern(
    fn: F,
    *,
    tool: str | None = None,
    server: str = LOCAL,
    wait: float = 0.0,
    arguments: Judged | None = None,
    client: Aegis | None = None,
    async_client: AsyncAegis | None = None,
) -> F: ...
@overload
def govern(
    fn: None = None,
    *,
    tool: str | None = None,
    server: str = LOCAL,
    wait: float = 0.0,
    arguments: Judged | None = None,
    client: Aegis | None = None,
    async_client: AsyncAegis | None = None,
) -> Callable[[F], F]: ...
def govern(
    fn: F | None = None,
    *,
    tool: str | None = None,
    server: str = LOCAL,
    wait: float = 0.0,
    arguments: Judged | None = None,
    client: Aegis | None = None,
    async_client: AsyncAegis | None = None,
) -> F | Callable[[F], F]:
    """Wraps a function or coroutine function: each call is decided first, and its outcome reported.

    Policies see the call of `tool` (by default the function's name) of `server`, with the arguments by
    their parameters' names; `arguments`, called as the function is, says something else to judge.
    `wait` is how many seconds a human may take to approve. The wrapped function raises `Denied`,
    `ApprovalRequired` or `Unavailable` instead of running.
    """
    if fn is None:
        return lambda fn: govern(
            fn, tool=tool, server=server, wait=wait, arguments=arguments, client=client, async_client=async_client
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"{fn.__name__} is a generator, and runs after it was called; govern what it calls instead")
    name = tool or fn.__name__
    judged = arguments or _by_name(fn)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            aegis = async_client or shared_async()
            judge = lambda: tool_call(name, judged(*args, **kwargs), server=server)  # noqa: E731
            return await around_async(aegis, judge, wait, lambda: fn(*args, **kwargs))

        return cast(F, run_async)

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        aegis = client or shared()
        question = tool_call(name, judged(*args, **kwargs), server=server)
        return around(aegis, question, wait, lambda: fn(*args, **kwargs))

    return cast(F, run)


def around(aegis: Aegis, question: Question, wait: float, call: Callable[[], T]) -> T:
    """Asks, calls, reports."""
    decision = aegis.evaluate(question, wait=wait).check()
    try:
        result = call()
    except BaseException:
        aegis.conclude(decision, "failure")
        raise
    aegis.conclude(decision, "success")
    return result


async def around_async(
    aegis: AsyncAegis, judge: Callable[[], Question], wait: float, call: Callable[[], Awaitable[T]]
) -> T:
    """The same for coroutines. What else runs meanwhile may change what is passed: then it was not judged."""
    question = judge()
    asked = question.body()
    decision = (await aegis.evaluate(question, wait=wait)).check()
    if judge().body() != asked:
        await aegis.conclude(decision, "failure")
        raise Denied("malformed_message", "The arguments have changed while the call was being decided.")
    try:
        result = await call()
    except asyncio.CancelledError:
        # How far it came, nobody knows. The daemon concludes it, if this is not heard.
        await asyncio.shield(aegis.conclude(decision, "unknown"))
        raise
    except BaseException:
        await aegis.conclude(decision, "failure")
        raise
    await aegis.conclude(decision, "success")
    return result


governed = govern
"""`govern` as a decorator: `@governed(tool="write_query", server="shop")`."""


def _by_name(fn: Callable[..., Any]) -> Judged:
    """The arguments by their parameters' names, defaults included: what the function will see."""
    signature = inspect.signature(fn)
    own = next(iter(signature.parameters), None)
    method = own in ("self", "cls") and "." in getattr(fn, "__qualname__", "")

    def judged(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if method and name == own:
                continue
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            else:
                named[name] = value
        return named

    return judged
