"""The adapter with the real CrewAI: a crew on a scripted model."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")
pytest.importorskip("crewai", reason="CrewAI has another environment")

from aegis_sdk import Aegis
from aegis_sdk.adapters.crewai import govern_tools
from conftest import Daemon
from crewai import Agent, BaseLLM, Crew, Task
from crewai.tools import BaseTool


class ReadQuery(BaseTool):
    name: str = "read_query"
    description: str = "Reads."
    ran: list[str] = []

    def _run(self, query: str) -> str:
        self.ran.append(query)
        return "1 row"


class Scripted(BaseLLM):
    """Calls `read_query` once in CrewAI's own words, and then ends."""

    script: list[str] = []
    heard: list[str] = []

    def call(self, messages: Any, *_: Any, **__: Any) -> str:
        self.heard.append(str(messages))
        return self.script.pop(0)

    def supports_function_calling(self) -> bool:
        return False


def run(client: Aegis, query: str) -> tuple[list[str], str]:
    """What ran, and what the model was told."""
    tool = ReadQuery(ran=[])
    call = f'Thought: I read.\nAction: read_query\nAction Input: {{"query": "{query}"}}\n'
    model = Scripted(model="scripted", script=[call, "Thought: I now know the answer\nFinal Answer: done"], heard=[])
    tools = govern_tools([tool], server="shop", client=client)
    clerk = Agent(role="clerk", goal="read", backstory="reads", llm=model, tools=tools, verbose=False)
    task = Task(description="read", expected_output="rows", agent=clerk)
    Crew(agents=[clerk], tasks=[task], verbose=False).kickoff()
    return tool.ran, model.heard[-1]


def test_a_governed_tool_runs_in_a_crew(daemon: Daemon, aegis: Aegis) -> None:
    ran, told = run(aegis, "SELECT 1")
    assert ran == ["SELECT 1"]
    assert "1 row" in told
    assert daemon.outcomes(daemon.entries("decision")[-1]["decision_id"]) == ["success"]


def test_a_denied_tool_does_not_run_and_the_model_is_told_why(aegis: Aegis) -> None:
    ran, told = run(aegis, "DROP TABLE orders")
    assert ran == []
    assert "Tables are never dropped." in told


def test_without_a_daemon_no_tool_runs(tmp_path: Any) -> None:
    with Aegis(tmp_path / "kernel.sock") as away:
        ran, told = run(away, "SELECT 1")
    assert ran == [] and "not run" in told


def test_each_call_is_decided_for_itself(daemon: Daemon, aegis: Aegis) -> None:
    before = len(daemon.entries("decision"))
    for _ in range(2):
        run(aegis, "SELECT same")
    assert len(daemon.entries("decision")) == before + 2
