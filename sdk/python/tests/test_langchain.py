"""The adapter with the real LangChain: its tools, its agent loop on a scripted model."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest

pytest.importorskip("langchain", reason="LangChain has another environment")

from aegis_sdk import Aegis, AsyncAegis, Denied
from aegis_sdk.adapters.langchain import govern_tool, govern_tools
from conftest import Daemon
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool


class Scripted(GenericFakeChatModel):
    """Calls what it was told to call."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def reading(ran: list[str]) -> Any:
    @tool
    def read_query(query: str, call: Annotated[str, InjectedToolCallId]) -> str:
        """Reads."""
        ran.append(f"{query} {call}")
        return "1 row"

    return read_query


def agent(client: Aegis, query: str, ran: list[str], **options: Any) -> Any:
    call = {"name": "read_query", "args": {"query": query}, "id": "call-1"}
    model = Scripted(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("done")]))
    return create_agent(model, tools=govern_tools([reading(ran)], server="shop", client=client, **options))


def answers(result: Any) -> list[ToolMessage]:
    return [message for message in result["messages"] if isinstance(message, ToolMessage)]


def test_a_governed_tool_runs_in_an_agent(daemon: Daemon, aegis: Aegis) -> None:
    ran: list[str] = []
    (answer,) = answers(agent(aegis, "SELECT 1", ran).invoke({"messages": "go"}))
    assert (answer.content, answer.tool_call_id) == ("1 row", "call-1")
    assert ran == ["SELECT 1 call-1"]
    decision = daemon.entries("decision")[-1]
    assert decision["arguments"] == {"query": "SELECT 1"}, "what is injected is not the model's"
    assert daemon.outcomes(decision["decision_id"]) == ["success"]


def test_a_denied_tool_does_not_run_and_the_model_is_told_why(aegis: Aegis) -> None:
    ran: list[str] = []
    (answer,) = answers(agent(aegis, "DROP TABLE orders", ran).invoke({"messages": "go"}))
    assert answer.status == "error"
    assert "Tables are never dropped." in answer.content
    assert ran == []


def test_without_a_daemon_no_tool_runs(tmp_path: Any) -> None:
    ran: list[str] = []
    with Aegis(tmp_path / "kernel.sock") as away:
        (answer,) = answers(agent(away, "SELECT 1", ran).invoke({"messages": "go"}))
    assert (answer.status, ran) == ("error", [])


def test_coroutines_are_governed_alike(daemon: Daemon, aegis: Aegis) -> None:
    async def main() -> None:
        async with AsyncAegis(daemon.socket) as client:
            ran: list[str] = []
            for query, status in (("SELECT 1", "success"), ("DROP TABLE orders", "error")):
                governed = agent(aegis, query, ran, async_client=client)
                (answer,) = answers(await governed.ainvoke({"messages": "go"}))
                assert answer.status == status
            assert ran == ["SELECT 1 call-1"]

    asyncio.run(main())


def test_whoever_calls_a_tool_by_hand_gets_the_exception(aegis: Aegis) -> None:
    @tool
    def add(query: str) -> str:
        """Adds."""
        return query

    governed = govern_tool(add, server="shop", client=aegis)
    assert governed.invoke({"query": "tea"}) == "tea"
    with pytest.raises(Denied):
        governed.invoke({"query": "drop table x"})
