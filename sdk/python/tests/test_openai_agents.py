"""The adapter with the real OpenAI Agents SDK: its loop on a scripted model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("agents", reason="the OpenAI Agents SDK has another environment")

from aegis_sdk import AsyncAegis
from aegis_sdk.adapters.openai_agents import govern_tools
from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, WebSearchTool, function_tool
from conftest import Daemon
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


class Scripted(Model):
    """Calls `read_query` once, and then ends."""

    def __init__(self, arguments: str) -> None:
        self.arguments = arguments
        self.heard: list[Any] = []

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        self.heard.append(input)
        if len(self.heard) == 1:
            call = ResponseFunctionToolCall(
                type="function_call", call_id="call-1", name="read_query", arguments=self.arguments
            )
            return ModelResponse(output=[call], usage=Usage(), response_id=None)
        text = ResponseOutputText(type="output_text", text="done", annotations=[])
        said = ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def run(socket: str, arguments: str) -> tuple[list[str], str]:
    """What ran, and what the model was told."""
    ran: list[str] = []

    @function_tool
    def read_query(query: str) -> str:
        """Reads."""
        ran.append(query)
        return "1 row"

    async def main() -> str:
        async with AsyncAegis(socket) as client:
            model = Scripted(arguments)
            tools = govern_tools([read_query], server="shop", async_client=client)
            agent = Agent(name="clerk", model=model, tools=tools)
            await Runner.run(agent, "go", run_config=RunConfig(tracing_disabled=True))
            outputs = [item for item in model.heard[1] if item.get("type") == "function_call_output"]
            return str(outputs[0]["output"])

    return ran, asyncio.run(main())


def test_a_governed_tool_runs_in_an_agent(daemon: Daemon) -> None:
    assert run(daemon.socket, json.dumps({"query": "SELECT 1"})) == (["SELECT 1"], "1 row")
    assert daemon.outcomes(daemon.entries("decision")[-1]["decision_id"]) == ["success"]


def test_a_denied_tool_does_not_run_and_the_model_is_told_why(daemon: Daemon) -> None:
    ran, told = run(daemon.socket, json.dumps({"query": "DROP TABLE orders"}))
    assert ran == []
    assert "Tables are never dropped." in told


def test_arguments_that_are_none_do_not_run(daemon: Daemon) -> None:
    for arguments in ("[]", "{", '{"query": NaN}'):
        ran, told = run(daemon.socket, arguments)
        assert ran == [] and "not run" in told


def test_without_a_daemon_no_tool_runs(tmp_path: Any) -> None:
    ran, told = run(str(tmp_path / "kernel.sock"), json.dumps({"query": "SELECT 1"}))
    assert ran == [] and "not run" in told


def test_what_runs_at_the_provider_is_refused() -> None:
    with pytest.raises(TypeError, match="elsewhere"):
        govern_tools([WebSearchTool()])
