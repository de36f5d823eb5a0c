"""Function tools of the OpenAI Agents SDK.

    from aegis_sdk.adapters.openai_agents import govern_tools

    agent = Agent(name="clerk", tools=govern_tools([search, delete_order], server="shop"))
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Iterable

from agents import FunctionTool, Tool
from agents.tool_context import ToolContext

from ..aio import AsyncAegis
from ..errors import AegisError, Denied
from ..governing import around_async, shared_async
from ..model import LOCAL, Question, tool_call
from . import told

__all__ = ["govern_tool", "govern_tools"]


def govern_tool(
    tool: FunctionTool, *, server: str = LOCAL, wait: float = 0.0, async_client: AsyncAegis | None = None
) -> FunctionTool:
    """The same tool, asking before it runs. Policies know it by its name and `server`."""
    inner = tool.on_invoke_tool

    async def invoke(context: ToolContext[Any], text: str) -> Any:
        try:
            arguments = json.loads(text) if text else {}
        except ValueError:
            arguments = None
        try:
            question = _question(tool.name, arguments, server)
            # What runs is what was judged: its one reading, written anew.
            judged = json.dumps(arguments)
            return await around_async(
                async_client or shared_async(), lambda: question, wait, lambda: inner(context, judged)
            )
        except AegisError as error:
            return told(error)

    return dataclasses.replace(tool, on_invoke_tool=invoke)


def govern_tools(tools: Iterable[Tool], **options: Any) -> list[Tool]:
    """The same tools, with the options of `govern_tool`.

    Tools that are no functions run at the provider, where nothing here can stop them; they are refused.
    """
    governed: list[Tool] = []
    for tool in tools:
        if not isinstance(tool, FunctionTool):
            raise TypeError(f"{type(tool).__name__} runs elsewhere and cannot be governed here; leave it out")
        governed.append(govern_tool(tool, **options))
    return governed


def _question(name: str, arguments: Any, server: str) -> Question:
    if not isinstance(arguments, dict):
        raise Denied("malformed_message", f"The arguments of {name} are no JSON object.")
    return tool_call(name, arguments, server=server)
