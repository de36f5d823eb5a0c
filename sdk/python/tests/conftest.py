"""A real daemon over a temporary folder. `AEGIS_BIN` names the program."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Any, Iterator

import pytest
from aegis_sdk import Aegis

AEGIS = os.environ.get("AEGIS_BIN", "aegis")

CONFIG = """
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: bot}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %d}}}
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: {name: all}
spec: {tMin: 1, tau: 1000, approvalsAtL3: 1}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: shop}
spec:
  match: {servers: [shop]}
  rules:
    - {name: read, effect: allow, tools: [read_query, add]}
    - {name: ask, effect: require_approval, tools: [write_query], reason: Changes need a human.}
    - name: never-drop
      effect: deny
      reason: Tables are never dropped.
      when: [{argument: $.query, operator: matches, value: '(?i)\\bdrop\\s+table\\b'}]
    - name: leaky
      effect: allow
      tools: [leaky]
      obligations: [{kind: redactResult, target: 'sk-[a-z0-9]+'}]
"""


class Daemon:
    """`aegis up`, which can be ended and started again."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        (folder / "aegis.d").mkdir()
        (folder / "aegis.d" / "all.yaml").write_text(CONFIG % os.getuid())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [AEGIS, "up", "--config", self.folder / "aegis.d", "--state", self.state]
        command += ["--admin", "127.0.0.1:0", "--kernel-address", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            command, stdout=open(self.folder / "out", "wb"), stderr=open(self.folder / "log", "ab")
        )
        wait_until("the daemon answers", lambda: self.run("status", check=False).returncode == 0)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    @property
    def socket(self) -> str:
        return str(self.state / "kernel.sock")

    @property
    def url(self) -> str:
        lines = (self.folder / "out").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.split()[:1] == ["kernel"] and "http" in line)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "AEGIS_SOCKET": str(self.state / "control.sock")}
        return subprocess.run([AEGIS, *arguments], capture_output=True, text=True, env=environment, check=check)

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """The newest last."""
        done = self.run("audit", "query", "--kind", kind, "--limit", "10000", "-o", "json")
        return [json.loads(line)["entry"] for line in reversed(done.stdout.splitlines())]

    def outcomes(self, decision_id: str | None) -> list[str]:
        """What is recorded of how a decision's action ended; waits for the first."""
        wait_until("an outcome is recorded", lambda: any(e["decision_id"] == decision_id for e in self.entries("outcome")))
        return [e["result"] for e in self.entries("outcome") if e["decision_id"] == decision_id]

    def approve(self, approval: str) -> None:
        self.run("approvals", "approve", approval)


def wait_until(what: str, condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("aegis"))
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def aegis(daemon: Daemon) -> Iterator[Aegis]:
    with Aegis(daemon.socket) as client:
        yield client
