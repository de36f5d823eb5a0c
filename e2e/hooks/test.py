"""Real coding agents, governed by `aegis integrate`, against a scripted model and a real daemon.

Each agent is asked by its model to delete a folder. The policy pack for coding agents refuses, and: the folder is
still there, the model was told why, the ledger has the decision. A harmless command runs. Then the daemon hangs, is away,
and somebody answers nonsense in its place: nothing runs. How long a hook takes as a whole process is printed, and never
asserted.

    test.py --aegis PATH --tools FOLDER_OF_AGENTS [AGENT…]
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from agents import AGENTS
from model import Model

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
IDENTITY = """
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: desk}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %d}}}
"""
REFUSED, HARMLESS = "rm -rf keep", "touch made"
WHY = "deleting whole folders is not allowed"


def expect(what, holds, detail=""):
    if not holds:
        sys.exit(f"FAILED: {what} {detail}")
    print(f"ok: {what}", flush=True)


def wait_until(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timed out: {what}")
        time.sleep(0.05)


class Domain:
    """A daemon with the pack for coding agents."""

    def __init__(self, aegis, folder):
        self.aegis, self.state = aegis, folder / "state"
        config = folder / "aegis.d"
        config.mkdir()
        (config / "identity.yaml").write_text(IDENTITY % os.getuid())
        for name in ("policy.yaml", "thresholds.yaml"):
            (config / name).write_text((ROOT / "policies/coding-agents" / name).read_text())
        self.environment = {**os.environ, "AEGIS_STATE": str(self.state), "AEGIS_SOCKET": str(self.state / "control.sock")}
        self.process = subprocess.Popen([aegis, "up", "--config", config, "--admin", "127.0.0.1:0"], env=self.environment,
                                        stdout=subprocess.DEVNULL, stderr=open(folder / "daemon.log", "wb"))
        wait_until("the daemon answers", lambda: self.run("status", check=False).returncode == 0)

    def run(self, *arguments, check=True, cwd=None, home=None, stdin=None):
        environment = {**self.environment, **({"HOME": str(home)} if home else {})}
        done = subprocess.run([self.aegis, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, input=stdin)
        if check and done.returncode != 0:
            sys.exit(f"aegis {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def decisions(self, server):
        lines = self.run("audit", "query", "--kind", "decision", "--limit", "100000", "-o", "json").stdout.splitlines()
        entries = [json.loads(line)["entry"] for line in lines]
        return [entry for entry in entries if entry["action"].get("server") == server]

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Desk:
    """A home and a working folder in which one agent is governed."""

    def __init__(self, agent, tools, domain, folder):
        self.agent, self.tools, self.domain, self.folder = agent, tools, domain, folder
        self.home, self.work = folder / "home", folder / "work"
        self.home.mkdir(parents=True)
        self.work.mkdir()
        if agent.name == "gemini":
            settings = self.home / ".gemini/settings.json"
            settings.parent.mkdir()
            settings.write_text('{"security": {"auth": {"selectedType": "gemini-api-key"}}}')
        domain.run("integrate", agent.name, home=self.home)
        domain.run("integrate", agent.name, "--check", home=self.home)

    def turn(self, command):
        """One turn of the agent; what its model was told of the command, and what the agent printed."""
        (self.work / "keep").mkdir(exist_ok=True)
        model = Model(lambda _: (self.agent.tool, {**self.agent.arguments, self.agent.named: command}))
        try:
            out = self.agent.run(self.tools, self.folder, model)
        finally:
            model.close()
        return (model.told[-1] if model.told else ""), f"\nasked: {model.asked}\ntold: {model.told}\n{out}"

    def is_refused(self, what, words):
        told, detail = self.turn(REFUSED)
        expect(f"{self.agent.name}, {what}: nothing was deleted", (self.work / "keep").is_dir(), detail)
        expect(f"{self.agent.name}, {what}: its model was told why", words in told, detail)


def governed(desk):
    name, domain = desk.agent.name, desk.domain
    desk.is_refused("refused by policy", WHY)
    refused = [entry for entry in domain.decisions(name) if entry["result"] == "deny"]
    expect(f"{name}: the ledger has the refusal",
           len(refused) == 1 and refused[0]["action"]["kind"] == "shell_exec" and refused[0]["action"]["protocol"] == "ide"
           and refused[0]["reason"] == "policy_denied", str(refused))
    told, detail = desk.turn(HARMLESS)
    expect(f"{name}: what is allowed is done", (desk.work / "made").exists(), detail)
    allowed = [entry for entry in domain.decisions(name) if entry["result"] == "allow"]
    expect(f"{name}: the ledger has the permission", len(allowed) == 1, str(allowed))


def unreachable(desks, domain):
    domain.process.send_signal(signal.SIGSTOP)
    for desk in desks:
        desk.is_refused("the daemon hangs", "no answer within")
    domain.close()
    for desk in desks:
        desk.is_refused("the daemon is away", "does not answer")
    # Somebody else at its socket, who says yes to everything.
    path = domain.state / "kernel.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"decision\":true}")

        threading.Thread(target=answer, daemon=True).start()
        for desk in desks:
            desk.is_refused("nonsense is answered", "no Aegis daemon of this version")
        listener.shutdown(socket.SHUT_RDWR)


def gone(desk, aegis):
    """The hook's program is not there any more."""
    files = [path for path in desk.home.rglob("*.json") if "aegis-hook" in path.read_text(errors="replace")]
    for path in files:
        path.write_text(path.read_text().replace(str(pathlib.Path(aegis).with_name("aegis-hook")), "/nowhere/aegis-hook"))
    expect(f"{desk.agent.name}: its configuration names the small program", files)
    desk.turn(REFUSED)
    expect(f"{desk.agent.name}, the hook's program is gone: nothing was deleted", (desk.work / "keep").is_dir())


def measure(domain, folder):
    """What an agent waits for, beside what it takes to start any process at all."""
    small = str(pathlib.Path(domain.aegis).with_name("aegis-hook"))
    payload = {"hook_event_name": "PreToolUse", "cwd": str(folder), "tool_name": "Bash", "tool_input": {"command": "ls"}}
    payload = json.dumps(payload).encode()
    asking = ["--agent", "claude-code", "--kernel-socket", str(domain.state / "kernel.sock")]
    rounds, warm = 200, 20
    print(f"measured: {rounds} of each after {warm} to warm up, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
          f"{domain.aegis}", flush=True)
    commands = {"true": ["true"], "aegis-hook": [small, *asking], "aegis hook": [domain.aegis, "hook", *asking]}
    for name, command in commands.items():
        samples = []
        for _ in range(warm + rounds):
            start = time.perf_counter_ns()
            done = subprocess.run(command, input=payload, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            samples.append((time.perf_counter_ns() - start) / 1000)
            if done.returncode != 0:
                sys.exit(f"{name}: {done.stderr.decode()}")
        samples = sorted(samples[warm:])
        print(f"measured: {name:12} whole process  p50 {samples[rounds // 2]:6.0f} µs   p99 {samples[rounds * 99 // 100]:6.0f} µs", flush=True)
    measure_exchange(domain, payload, rounds, warm)


def measure_exchange(domain, payload, rounds, warm):
    """The same question on one connection that stays open: what is left of a hook without its process."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(domain.state / "kernel.sock"))
    samples = []
    for _ in range(warm + rounds):
        start = time.perf_counter_ns()
        connection.request("POST", "/v1/hooks/claude-code", payload, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        samples.append((time.perf_counter_ns() - start) / 1000)
        if not answer["decision"]:
            sys.exit(f"the kernel API: {answer}")
    connection.close()
    samples = sorted(samples[warm:])
    print(f"measured: {'over HTTP':12} open connection p50 {samples[rounds // 2]:6.0f} µs   p99 {samples[rounds * 99 // 100]:6.0f} µs", flush=True)


def undone(desk):
    """What was there before is there again, and a second run changes nothing."""
    before = {path: path.read_bytes() for path in desk.home.rglob("*.json") if "aegis" in path.read_text(errors="replace")}
    desk.domain.run("integrate", desk.agent.name, home=desk.home)
    expect(f"{desk.agent.name}: integrating twice is integrating once", all(path.read_bytes() == text for path, text in before.items()))
    desk.domain.run("integrate", desk.agent.name, "--remove", home=desk.home)
    done = desk.domain.run("integrate", desk.agent.name, "--check", home=desk.home, check=False)
    expect(f"{desk.agent.name}: what is removed is missed by the check", done.returncode == 1, done.stdout)
    desk.domain.run("integrate", desk.agent.name, home=desk.home)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aegis", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("agents", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        domain = Domain(options.aegis, folder)
        try:
            chosen = [agent for agent in AGENTS if not options.agents or agent.name in options.agents]
            desks = [Desk(agent, options.tools, domain, folder / agent.name) for agent in chosen]
            for desk in desks:
                governed(desk)
                undone(desk)
            measure(domain, folder)
            unreachable(desks, domain)
            for desk in desks:
                gone(desk, options.aegis)
        finally:
            if domain.process.poll() is None:
                domain.close()


if __name__ == "__main__":
    main()
