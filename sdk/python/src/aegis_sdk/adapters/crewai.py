"""Tools of CrewAI.

    from aegis_sdk.adapters.crewai import govern_tools

    clerk = Agent(role="clerk", tools=govern_tools([search, delete_order], server="shop"), …)
"""

from __future__ import annotations

from typing import Any, Iterable

from crewai.tools import BaseTool
from pydantic import ConfigDict

from ..aio import AsyncAegis
from ..client import Aegis
from ..errors import AegisError
from ..governing import around, around_async, shared, shared_async
from ..model import LOCAL, Question, tool_call
from . import told

__all__ = ["GovernedTool", "govern_tool", "govern_tools"]


def _never(_arguments: Any = None, _result: Any = None) -> bool:
    return False


class GovernedTool(BaseTool):
    """A tool that asks before it runs. Its results are not cached: each call is decided for itself."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseTool
    server: str = LOCAL
    wait: float = 0.0
    client: Any = None
    async_client: Any = None

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        client: Aegis = self.client or shared()
        try:
            question = self._question(args, kwargs)
            return around(client, question, self.wait, lambda: self.inner.run(**dict(question.arguments)))
        except AegisError as error:
            return told(error)

    async def _arun(self, *args: Any, **kwargs: Any) -> Any:
        client: AsyncAegis = self.async_client or shared_async()
        try:
            question = self._question(args, kwargs)
            return await around_async(
                client, lambda: question, self.wait, lambda: self.inner.arun(**dict(question.arguments))
            )
        except AegisError as error:
            return told(error)

    def _question(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Question:
        names = list(self.inner.args_schema.model_fields)
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        return tool_call(self.inner.name, named, server=self.server)


def govern_tool(
    tool: BaseTool,
    *,
    server: str = LOCAL,
    wait: float = 0.0,
    client: Aegis | None = None,
    async_client: AsyncAegis | None = None,
) -> GovernedTool:
    """The same tool, asking before it runs. Policies know it by its name and `server`."""
    return GovernedTool(
        name=tool.name,
        description=tool.description,
        args_schema=tool.args_schema,
        result_as_answer=tool.result_as_answer,
        cache_function=_never,
        inner=tool,
        server=server,
        wait=wait,
        client=client,
        async_client=async_client,
    )


def govern_tools(tools: Iterable[BaseTool], **options: Any) -> list[BaseTool]:
    """The same tools, each asking before it runs; with the options of `govern_tool`."""
    return [govern_tool(tool, **options) for tool in tools]
