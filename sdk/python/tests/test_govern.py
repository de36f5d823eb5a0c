"""What a governed function does, against a real daemon, and what the ledger says of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from typing import Any

import pytest
from aegis_sdk import Aegis, ApprovalRequired, AsyncAegis, Denied, Question, Unavailable, govern, governed, tool_call
from conftest import Daemon, wait_until


def query(ran: list[str], client: Aegis, name: str = "read_query") -> Any:
    def run(query: str, limit: int = 10) -> str:
        ran.append(query)
        if query == "boom":
            raise ValueError(query)
        return f"{query} {limit}"

    return govern(run, tool=name, server="shop", client=client)


def test_a_function_wrapped_in_one_line_is_denied_and_recorded(daemon: Daemon, aegis: Aegis) -> None:
    ran: list[str] = []
    read_query = query(ran, aegis)
    with pytest.raises(Denied) as denied:
        read_query("DROP TABLE orders")
    assert ran == []
    assert (denied.value.reason, denied.value.message) == ("policy_denied", "Tables are never dropped.")
    entry = next(e for e in daemon.entries("decision") if e["decision_id"] == denied.value.decision_id)
    assert (entry["result"], entry["reason"]) == ("deny", "policy_denied")
    assert entry["agent_id"].endswith("/agent/bot")
    action = entry["action"]
    assert (action["protocol"], action["server"], action["tool"]) == ("kernel", "shop", "read_query")
    assert entry["arguments"] == {"query": "DROP TABLE orders", "limit": 10}, "defaults are judged too"


def test_what_is_allowed_runs_once_and_has_one_outcome(daemon: Daemon, aegis: Aegis) -> None:
    ran: list[str] = []
    before = len(daemon.entries("decision"))
    assert query(ran, aegis)("SELECT 1", limit=3) == "SELECT 1 3"
    assert ran == ["SELECT 1"]
    decisions = daemon.entries("decision")
    assert len(decisions) == before + 1
    assert daemon.outcomes(decisions[-1]["decision_id"]) == ["success"]


def test_a_failing_function_fails_as_it_did_and_is_recorded_so(daemon: Daemon, aegis: Aegis) -> None:
    with pytest.raises(ValueError, match="boom"):
        query([], aegis)("boom")
    assert daemon.outcomes(daemon.entries("decision")[-1]["decision_id"]) == ["failure"]


def test_no_policy_allows_what_none_names(aegis: Aegis) -> None:
    @governed(client=aegis)
    def launch() -> None:
        raise AssertionError("it must not run")

    with pytest.raises(Denied) as denied:
        launch()
    assert denied.value.reason == "no_policy_allows"


def test_without_a_daemon_nothing_runs(tmp_path: Any) -> None:
    ran: list[str] = []
    with Aegis(tmp_path / "kernel.sock") as away, pytest.raises(Unavailable, match="aegis up"):
        query(ran, away)("SELECT 1")

    @governed(async_client=AsyncAegis(tmp_path / "kernel.sock"))
    async def act() -> None:
        ran.append("async")

    with pytest.raises(Unavailable):
        asyncio.run(act())
    assert ran == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"decision\": true}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"decision\": true",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 36\r\n\r\n{\"decision\":true,\"context\":{\"verdict\"",
        b"HTTP/1.1 200 OK\r\n\r\n{\"decision\": true}",
        b"hello\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_permits_nothing(tmp_path: Any, answer: bytes) -> None:
    path = str(tmp_path / "kernel.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()

    server = threading.Thread(target=serve)
    server.start()
    ran: list[str] = []
    with Aegis(path) as client, pytest.raises(Unavailable):
        query(ran, client)("SELECT 1")
    server.join()
    assert ran == []


def test_an_approval_is_used_once(daemon: Daemon, aegis: Aegis) -> None:
    ran: list[str] = []
    write_query = query(ran, aegis, "write_query")
    with pytest.raises(ApprovalRequired) as asked:
        write_query("INSERT 1")
    assert ran == []
    assert asked.value.message == "Changes need a human."
    with pytest.raises(ApprovalRequired) as again:
        write_query("INSERT 1")
    assert again.value.approval == asked.value.approval, "the same call waits for the same approval"
    daemon.approve(asked.value.approval)
    with pytest.raises(ApprovalRequired) as other:
        write_query("INSERT 2")
    assert other.value.approval != asked.value.approval, "an approval is for its own arguments"
    assert write_query("INSERT 1") == "INSERT 1 10"
    with pytest.raises(ApprovalRequired):
        write_query("INSERT 1")
    assert ran == ["INSERT 1"]


def test_a_call_can_wait_for_a_human(daemon: Daemon, aegis: Aegis) -> None:
    def approve() -> None:
        def waiting() -> list[dict[str, Any]]:
            asked = daemon.entries("approval_requested")
            return [e for e in asked if e["arguments"] == {"query": "INSERT waits"}]

        wait_until("the approval is asked for", waiting)
        daemon.approve(waiting()[0]["approval"])

    human = threading.Thread(target=approve)
    human.start()
    decision = aegis.evaluate("write_query", {"query": "INSERT waits"}, server="shop", wait=30)
    human.join()
    assert (decision.allowed, decision.reason) == (True, "approved")
    aegis.report(decision, "success")


def test_who_is_refused_by_a_human_is_told(daemon: Daemon, aegis: Aegis) -> None:
    first = aegis.evaluate("write_query", {"query": "INSERT no"}, server="shop")
    assert first.verdict == "require_approval" and first.approval is not None
    daemon.run("approvals", "deny", first.approval)
    question = tool_call("write_query", {"query": "INSERT no"}, server="shop")
    again = aegis.evaluate(Question(**{**vars(question), "approval": first.approval}))
    assert (again.allowed, again.reason) == (False, "approval_denied")


def test_an_outcome_is_reported_once_and_by_its_own_agent(daemon: Daemon, aegis: Aegis) -> None:
    decision = aegis.evaluate("read_query", {"query": "SELECT 2"}, server="shop").check()
    aegis.report(decision, "failure")
    with pytest.raises(Denied, match="once"):
        aegis.report(decision, "success")
    assert daemon.outcomes(decision.decision_id) == ["failure"]


def test_what_the_daemon_cannot_do_to_a_result_is_denied(aegis: Aegis) -> None:
    decision = aegis.evaluate("leaky", {}, server="shop")
    assert (decision.allowed, decision.reason) == (False, "obligation_unmet")


def test_what_json_cannot_say_is_not_run(aegis: Aegis) -> None:
    ran: list[str] = []
    add = query(ran, aegis)
    for value in (object(), float("nan"), 2**60):
        with pytest.raises(Denied):
            add(value)
    assert ran == []


def test_methods_are_judged_without_self_and_by_what_is_said(aegis: Aegis) -> None:
    class Shop:
        @governed(server="shop", client=aegis)
        def add(self, item: str) -> str:
            return item

        @governed(tool="read_query", server="shop", client=aegis, arguments=lambda self, what: {"query": str(what)})
        def look(self, what: object) -> object:
            return what

    assert Shop().add("tea") == "tea"
    marker = object()
    assert Shop().look(marker) is marker


def test_coroutines_are_governed_alike(daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncAegis(daemon.socket) as client:

            @governed(tool="read_query", server="shop", async_client=client)
            async def read_query(query: str) -> str:
                await asyncio.sleep(0)
                return query

            answers = await asyncio.gather(*(read_query(f"SELECT {n}") for n in range(20)))
            assert answers == [f"SELECT {n}" for n in range(20)]
            with pytest.raises(Denied, match="never dropped"):
                await read_query("drop table x")

            @governed(tool="read_query", server="shop", async_client=client)
            async def hangs(query: str) -> None:
                await asyncio.Event().wait()

            running = asyncio.create_task(hangs("SELECT hangs"))
            before = {e["decision_id"] for e in daemon.entries("outcome")}
            wanted = {"query": "SELECT hangs"}

            def decided() -> list[Any]:
                return [e for e in daemon.entries("decision") if e.get("arguments") == wanted]

            while not decided():
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert before.isdisjoint({decided()[0]["decision_id"]})
            assert daemon.outcomes(decided()[0]["decision_id"]) == ["unknown"]

    asyncio.run(main())


def test_events_tell_of_policies_and_of_ones_own_decisions(daemon: Daemon, aegis: Aegis) -> None:
    events = aegis.events()
    first = next(events)
    assert first.name == "policy" and first.data["version"] > 0
    decision = aegis.evaluate("read_query", {"query": "SELECT 3"}, server="shop").check()
    told = next(events)
    while told.data.get("decision_id") != decision.decision_id:
        told = next(events)
    assert (told.name, told.data["result"], told.id) == ("decision", "allow", str(decision.index))
    assert "arguments" not in told.data
    policy = daemon.folder / "aegis.d" / "more.yaml"
    policy.write_text(
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: more}\n"
        "spec: {rules: [{name: more, effect: deny, tools: [more]}]}\n"
    )
    told = next(e for e in events if e.name == "policy")
    assert told.data["version"] > first.data["version"]
    policy.unlink()
    aegis.report(decision, "success")


def test_a_token_is_asked_for_on_loopback(daemon: Daemon) -> None:
    token = (daemon.state / "kernel.token").read_text().strip()
    with Aegis(url=daemon.url, token=token) as client:
        assert client.evaluate("read_query", {"query": "SELECT 4"}, server="shop").allowed
    for wrong in (None, "0" * 64):
        with Aegis(url=daemon.url, token=wrong) as client, pytest.raises(Denied) as denied:
            client.evaluate("read_query", {"query": "SELECT 4"}, server="shop")
        assert denied.value.reason == "identity_missing"


def test_threads_and_children_have_connections_of_their_own(daemon: Daemon, aegis: Aegis) -> None:
    read_query = query([], aegis)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(10):
                assert read_query(f"SELECT {number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    child = os.fork()
    if child == 0:
        os._exit(0 if read_query("SELECT child") == "SELECT child 10" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read_query("SELECT parent") == "SELECT parent 10"


def test_a_daemon_that_was_away_is_found_again(tmp_path: Any) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    with Aegis(daemon.socket) as client:
        ran: list[str] = []
        read_query = query(ran, client)
        read_query("SELECT 1")
        left = client.evaluate("read_query", {"query": "SELECT left"}, server="shop").check()
        daemon.stop()
        with pytest.raises(Unavailable):
            read_query("SELECT 2")
        daemon.start()
        assert daemon.outcomes(left.decision_id) == ["unknown"], "a drained daemon concludes what is open"
        read_query("SELECT 3")
        daemon.stop(signal.SIGKILL)
        with pytest.raises(Unavailable):
            read_query("SELECT 4")
        assert ran == ["SELECT 1", "SELECT 3"]


def test_generators_are_refused_when_they_are_wrapped() -> None:
    def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        govern(numbers)
