"""A2A agents of others, direct against proxied.

A real agent (PyPI `a2a-sdk`) and its real client talk to each other, first straight and then through
Aegis: in JSON-RPC and HTTP+JSON, in versions 1.0 and 0.3, whole and streaming. What is allowed must look
the same; what is not allowed must be refused in each binding's own words and never reach the agent.
With `--node`, a client of npm `@a2a-js/sdk` does the same.

    direct_and_proxied.py --aegis PATH [--node PATH --modules FOLDER]
"""

import argparse
import asyncio
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes.agent_card_routes import create_agent_card_routes
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.routes.rest_routes import create_rest_routes
from a2a.server.tasks import InMemoryPushNotificationConfigStore, InMemoryTaskStore, TaskUpdater
from a2a.types import a2a_pb2 as types
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette

CONFIG = """
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: visitor}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %(uid)d}}}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentUpstream
metadata: {name: planner}
spec: {protocol: a2a, url: "http://127.0.0.1:%(agent)d/", listen: "127.0.0.1:%(proxy)d"}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: planner}
spec:
  rules:
    - {name: talk, effect: allow}
    - name: forbidden
      effect: deny
      methods: [SendMessage, SendStreamingMessage]
      when: [{argument: '$.message.parts[*].text', operator: contains, value: forbidden}]
      reason: Not for agents.
"""
VARIANTS = [("JSONRPC", "1.0"), ("HTTP+JSON", "1.0"), ("JSONRPC", "0.3"), ("HTTP+JSON", "0.3")]
METADATA = "http://169.254.169.254/latest/meta-data"


class Echo(AgentExecutor):
    """Answers a message with its own text, in two steps of a task, and counts what it was asked."""

    asked = []

    async def execute(self, context, event_queue):
        text = context.get_user_input()
        Echo.asked.append(text)
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        await updater.add_artifact([new_text_part(f"echo: {text}")], name="echo")
        await updater.complete()

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def card(url, variants=VARIANTS):
    """The agent's card, with every interface at `url`."""
    interfaces = [types.AgentInterface(protocol_binding=binding, protocol_version=version, url=url)
                  for binding, version in variants]
    skill = types.AgentSkill(id="echo", name="Echo", description="Says it again", tags=["test"])
    capabilities = types.AgentCapabilities(streaming=True, push_notifications=True, extended_agent_card=True)
    return types.AgentCard(
        name="planner", description="An agent that echoes", version="1.0.0", supported_interfaces=interfaces,
        capabilities=capabilities, default_input_modes=["text/plain"], default_output_modes=["text/plain"], skills=[skill])


def serve(port):
    """Runs the agent, until this process ends."""
    own = card(f"http://127.0.0.1:{port}/")
    handler = DefaultRequestHandler(
        agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=own,
        push_config_store=InMemoryPushNotificationConfigStore(), extended_agent_card=own)
    routes = [
        *create_agent_card_routes(own),
        *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
        *create_rest_routes(handler, enable_v0_3_compat=True),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="warning"))
    return server, asyncio.create_task(server.serve())


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def expect(what, holds):
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


async def answers(url):
    """Waits until something answers."""
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            try:
                await client.get(url)
                return
            except httpx.TransportError:
                await asyncio.sleep(0.1)
    sys.exit(f"timed out: {url} answers")


def plain(message):
    """What an answer says, without what differs from call to call."""
    def clean(value):
        if isinstance(value, dict):
            changing = ("id", "taskId", "contextId", "messageId", "artifactId", "timestamp")
            return {k: "…" if k in changing else clean(v) for k, v in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value
    return clean(MessageToDict(message))


async def attempt(call):
    """The result of a call, or what kind of error it ends with."""
    try:
        return await call
    except Exception as error:
        return f"{type(error).__name__}"


async def visit(url, binding, version):
    """Everything that one client does; what it saw."""
    async def collect(stream):
        return [event async for event in stream]

    seen = {}
    for streaming in (False, True):
        async with httpx.AsyncClient(timeout=30) as http:
            config = ClientConfig(streaming=streaming, httpx_client=http, supported_protocol_bindings=[binding])
            client = ClientFactory(config).create(card(url, [(binding, version)]))
            how = "streamed" if streaming else "whole"

            def send(text):
                request = types.SendMessageRequest(message=new_text_message(text, role=types.Role.ROLE_USER))
                return attempt(collect(client.send_message(request)))

            events = await send("hello")
            seen[f"hello, {how}"] = events if isinstance(events, str) else [plain(event) for event in events]
            refused = await send("forbidden")
            seen[f"forbidden, {how}"] = refused if isinstance(refused, str) else "answered"
            if isinstance(events, str):
                continue
            task = next((event.task.id or event.status_update.task_id for event in events
                         if event.HasField("task") or event.HasField("status_update")), "")
            got = await attempt(client.get_task(types.GetTaskRequest(id=task)))
            seen[f"its task, {how}"] = got if isinstance(got, str) else plain(got)
            seen[f"no task, {how}"] = await attempt(client.get_task(types.GetTaskRequest(id="nowhere")))
            if version == "1.0":
                listed = await attempt(client.list_tasks(types.ListTasksRequest(page_size=100)))
                seen[f"tasks, {how}"] = listed if isinstance(listed, str) else task in [t.id for t in listed.tasks]
            hook = types.TaskPushNotificationConfig(task_id=task, id="p", url=METADATA)
            made = await attempt(client.create_task_push_notification_config(hook))
            seen[f"webhook, {how}"] = made if isinstance(made, str) else "made"
            if version == "1.0":
                extended = await attempt(client.get_extended_agent_card(types.GetExtendedAgentCardRequest()))
                seen[f"extended card, {how}"] = extended if isinstance(extended, str) else extended.name
    return seen


async def compare(direct, proxied):
    """The stock client, straight and through Aegis, in each binding and version."""
    for binding, version in VARIANTS:
        name = f"{binding} {version}"
        straight = await visit(direct, binding, version)
        before = len(Echo.asked)
        through = await visit(proxied, binding, version)
        differing = {what for what in straight if straight[what] != through.get(what)}
        governed = {what for what in straight if what.startswith(("forbidden", "webhook"))}
        for what in sorted(differing - governed):
            print(f"  {what}\n    direct:  {straight[what]}\n    proxied: {through.get(what)}")
        expect(f"{name}: what is allowed looks the same through Aegis ({len(straight) - len(governed)} answers)",
               not differing - governed)
        expect(f"{name}: a message straight to the agent is answered",
               straight["forbidden, whole"] == straight["forbidden, streamed"] == "answered")
        told = [through[f"forbidden, {how}"] for how in ("whole", "streamed")]
        expect(f"{name}: through Aegis the forbidden one is an error of the binding: {told}", "answered" not in told)
        hooks = [through[f"webhook, {how}"] for how in ("whole", "streamed")]
        expect(f"{name}: a webhook to the machine's metadata is refused: {hooks}", "made" not in hooks)
        expect(f"{name}: the agent never saw the forbidden message", "forbidden" not in Echo.asked[before:])


async def raw(proxied):
    """What each binding's refusal looks like on the wire."""
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "forbidden"}]}
    headers = {"A2A-Version": "1.0"}
    async with httpx.AsyncClient(headers=headers) as http:
        told = await http.post(f"{proxied}message:send", json={"message": message})
        expect("HTTP+JSON: 403 PERMISSION_DENIED",
               (told.status_code, told.json()["error"]["status"]) == (403, "PERMISSION_DENIED"))
        call = {"jsonrpc": "2.0", "id": "x", "method": "SendMessage", "params": {"message": message}}
        told = (await http.post(proxied, json=call)).json()
        expect("JSON-RPC: an error with the request's id and the reason",
               (told["id"], told["error"]["data"][0]["reason"]) == ("x", "POLICY_DENIED"))
        told = await http.get(f"{proxied}tasks/nowhere")
        expect("HTTP+JSON: a task that is not one's own is not found", told.status_code == 404)
        told = await http.get(f"{proxied}tasks/nowhere", headers={"A2A-Version": "9.0"})
        expect("HTTP+JSON: an unknown version is refused by the protocol's own error",
               told.json()["error"]["details"][0]["reason"] == "VERSION_NOT_SUPPORTED")
        told = (await http.post(proxied, json=call, headers={"A2A-Extensions": "urn:example:x"})).json()
        expect("JSON-RPC: an unknown extension is refused by the protocol's own error", told["error"]["code"] == -32004)


def node(options, direct, proxied):
    """A client of npm @a2a-js/sdk."""
    script = pathlib.Path(__file__).with_name("client.mjs")
    def run(url):
        done = subprocess.run([options.node, str(script), options.modules, url], capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            sys.exit(f"{script.name}: {done.stderr}")
        return json.loads(done.stdout)
    straight, through = run(direct), run(proxied)
    governed = {what for what in straight if "forbidden" in what}
    differing = {what for what in straight if straight[what] != through.get(what)} - governed
    for what in sorted(differing):
        print(f"  {what}\n    direct:  {straight[what]}\n    proxied: {through.get(what)}")
    expect(f"@a2a-js/sdk: what is allowed looks the same through Aegis ({len(straight) - len(governed)} answers)", not differing)
    expect(f"@a2a-js/sdk: the forbidden message is refused: {[through[what] for what in sorted(governed)]}",
           governed and all(straight[what] == "answered" != through[what] for what in governed))


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aegis", required=True)
    parser.add_argument("--node")
    parser.add_argument("--modules")
    options = parser.parse_args()
    agent, proxy = free_port(), free_port()
    direct, proxied = f"http://127.0.0.1:{agent}/", f"http://127.0.0.1:{proxy}/"
    server, serving = serve(agent)
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "aegis.d"
        config.mkdir()
        (config / "all.yaml").write_text(CONFIG % {"uid": os.getuid(), "agent": agent, "proxy": proxy})
        os.environ["AEGIS_STATE"] = f"{folder}/state"
        log = open(f"{folder}/daemon.log", "wb")
        daemon = subprocess.Popen([options.aegis, "up", "--config", str(config), "--admin", "127.0.0.1:0"],
                                  stdout=subprocess.DEVNULL, stderr=log)
        try:
            await answers(direct)
            await answers(proxied)
            async with httpx.AsyncClient() as http:
                path = ".well-known/agent-card.json"
                straight, through = await http.get(direct + path), await http.get(proxied + path)
                expect("the card passes byte for byte, with its ETag",
                       through.status_code == 200 and straight.content == through.content
                       and straight.headers["etag"] == through.headers["etag"])
                again = await http.get(proxied + path, headers={"If-None-Match": straight.headers["etag"]})
                expect("a client that has it is told so", again.status_code == 304)
            await compare(direct, proxied)
            await raw(proxied)
            if options.node:
                await asyncio.to_thread(node, options, direct, proxied)
        except SystemExit:
            print(pathlib.Path(folder, "daemon.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            daemon.terminate()
            daemon.wait()
            server.should_exit = True
            await serving
        exported = subprocess.run([options.aegis, "audit", "verify", "--database", f"{folder}/state/ledger.db"],
                                  capture_output=True, text=True)
        expect("the ledger verifies", exported.returncode == 0)
    print("1 passed, 0 failed")


asyncio.run(main())
