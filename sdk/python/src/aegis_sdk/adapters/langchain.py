"""Tools of LangChain and LangGraph.

    from aegis_sdk.adapters.langchain import govern_tools

    agent = create_agent(model, tools=govern_tools([search, delete_order], server="shop"))

Works for whatever takes LangChain's tools: agents, LangGraph's `ToolNode`, chains.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict

from ..aio import AsyncAegis
from ..client import Aegis
from ..errors import AegisError, Denied
from ..governing import around, around_async, shared, shared_async
from ..model import LOCAL, Question, tool_call
from . import told

__all__ = ["GovernedTool", "govern_tool", "govern_tools"]


class GovernedTool(BaseTool):
    """A tool that asks before it runs. Judged is what the model said, without what is injected."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseTool
    server: str = LOCAL
    wait: float = 0.0
    client: Any = None
    async_client: Any = None

    def _question(self, tool_input: Any) -> Question:
        return tool_call(self.inner.name, self._judged(tool_input), server=self.server)

    def _judged(self, tool_input: Any) -> Mapping[str, Any]:
        names = _names(self.inner)
        if isinstance(tool_input, Mapping):
            return {name: value for name, value in tool_input.items() if name in names}
        if isinstance(tool_input, str) and len(names) == 1:
            return {names[0]: tool_input}
        raise Denied("malformed_message", f"The input of {self.inner.name} does not name its arguments.")

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        client: Aegis = self.client or shared()
        try:
            question = self._question(tool_input)
            return around(client, question, self.wait, lambda: self.inner.run(tool_input, *args, **kwargs))
        except AegisError as error:
            return self._refused(error, kwargs.get("tool_call_id"))

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        client: AsyncAegis = self.async_client or shared_async()
        try:
            judge = lambda: self._question(tool_input)  # noqa: E731
            return await around_async(client, judge, self.wait, lambda: self.inner.arun(tool_input, *args, **kwargs))
        except AegisError as error:
            return self._refused(error, kwargs.get("tool_call_id"))

    def _refused(self, error: AegisError, call: str | None) -> ToolMessage:
        """A model that asked is answered; anybody else who called gets the exception."""
        if call is None:
            raise error
        return ToolMessage(content=told(error), name=self.name, tool_call_id=call, status="error")

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a governed tool is called by `run`, which asks first")


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
        return_direct=tool.return_direct,
        response_format=tool.response_format,
        tags=tool.tags,
        metadata=tool.metadata,
        inner=tool,
        server=server,
        wait=wait,
        client=client,
        async_client=async_client,
    )


def govern_tools(tools: Iterable[BaseTool], **options: Any) -> Sequence[GovernedTool]:
    """The same tools, each asking before it runs; with the options of `govern_tool`."""
    return [govern_tool(tool, **options) for tool in tools]


def _names(tool: BaseTool) -> list[str]:
    """The arguments that a model may give; injected ones are not among them."""
    schema = tool.tool_call_schema
    if isinstance(schema, dict):
        described = schema
    elif issubclass(schema, BaseModel):
        described = schema.model_json_schema()
    else:
        raise TypeError(f"the arguments of {tool.name} are described by Pydantic 1; describe them by Pydantic 2")
    return list(described.get("properties", {}))
