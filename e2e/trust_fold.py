#!/usr/bin/env python3
"""Folds audit entries into trust, independently of Aegis: an auditor's second opinion.

    aegis audit export --jsonl | trust_fold.py [--critical]

Reads one entry per line, in log order, and prints {"agent": {"a": …, "b": …, "score": …}} with sorted
names. `a` and `b` are the evidence for and against, in millionths of an observation; the score is the
mean of Beta(a, b), times 1000, rounded down. With --critical each agent also gets the probability, in
per mille, that its true score lies below `criticalScore`, and whether that quarantines it. Standard
library only, whole numbers only.
"""
import calendar
import json
import math
import re
import sys
import time
from fractions import Fraction

UNIT = 1_000_000                # one observation
LIMIT = 1_000 * UNIT            # more evidence than this is scaled down, so that old conduct fades
KINDS = {"tool_call", "resource_read", "subscription", "prompt_get", "completion", "server_request", "agent_message",
         "http_request", "connect", "file_read", "file_write", "shell_exec"}  # what counts; list, session, task prepare only
AGAINST = {"policy_denied", "capability_missing", "approval_denied", "delegation_invalid", "header_mismatch"}
DEFAULTS = {"tMin": 900, "tau": 650, "sensitiveAt": 700, "weights": {}, "alpha": 990, "rho": 900, "criticalScore": 300,
            "criticalConfidence": 950, "evidenceCap": 5000, "costLimitMicros": 300000, "fileLimit": 10,
            "approvalsAtL3": 2, "maxStalenessSecs": 60, "approvalTtlSecs": 900, "suspended": False}
PER_MILLE = {"tMin", "tau", "sensitiveAt", "alpha", "rho", "criticalScore", "criticalConfidence"}
NAME = r"[A-Za-z0-9._-]+"
AGENT = re.compile(rf"spiffe://[a-z0-9._-]+/(ns/{NAME}/sa/{NAME}/agent/{NAME}|user/{NAME}/ide/{NAME})")


def whole(value):
    """Whether a JSON value is a natural number; `true` is not."""
    return type(value) is int and value >= 0


def thresholds_of(spec, current):
    """What a configuration entry sets: the defaults, overlaid. What cannot be understood changes nothing."""
    if not isinstance(spec, dict) or not set(spec) <= set(DEFAULTS):
        return current
    for name, value in spec.items():
        if name not in ("weights", "suspended") and not (whole(value) and (name not in PER_MILLE or value <= 1000)):
            return current
    return {**DEFAULTS, **spec}


class Posterior:
    """The evidence about one agent. A newcomer is Beta(1, 1)."""

    def __init__(self):
        self.a = self.b = UNIT
        self.hour = self.gained = 0

    def succeeded(self, risk, risky, hour, limits):
        if risky:  # a' = αa, b' = b + (1 − α)a, in whole thousandths of a
            kept = self.a // 1000 * limits["alpha"]
            self.a, self.b = kept, self.b + self.a - kept
        if hour > self.hour:  # an hour that is over does not begin again
            self.hour, self.gained = hour, 0
        room = max(0, limits["evidenceCap"] * 1000 - self.gained)
        gain = min(max(risk, 10) * 1000, room)
        self.gained += gain
        self.a += gain
        self.fade()

    def violated(self, risk):
        self.b += max(risk, 200) * 1000
        self.fade()

    def adjusted(self, a, b):
        self.a, self.b = (min(max(value, 1), LIMIT // 2) for value in (a, b))
        self.fade()

    def fade(self):
        """Above the limit both are scaled alike, in thousandths, rounding down at each division."""
        mass = self.a + self.b
        if mass > LIMIT:
            self.a, self.b = (v // 1000 * (LIMIT // 1000) // (mass // 1000) * 1000 for v in (self.a, self.b))

    def score(self):
        return min(1000, self.a * 1000 // (self.a + self.b))

    def below(self, score):
        """P(θ < score/1000) in per mille: P(Bin(A+B−1, x) ≥ A) for whole A and B of at most 64 together, exactly."""
        a, b = (max(1, (value + UNIT // 2) // UNIT) for value in (self.a, self.b))
        if a + b > 64:
            a = min(max((a * 64 + (a + b) // 2) // (a + b), 1), 63)
            b = 64 - a
        x, n = Fraction(min(score, 500), 1000), a + b - 1
        fewer = sum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a))
        return math.floor((1 - fewer) * 1000)


def hour_of(timestamp):
    """Hours since the epoch of an RFC 3339 time in UTC."""
    return calendar.timegm(time.strptime(timestamp[:19], "%Y-%m-%dT%H:%M:%S")) // 3600


def fold(entries):
    """An agent's own journal says nothing by hand, nothing of agents that have none, and nothing good of another agent: the
    other's own journal has the same call. Once a component has written to the log, the hour is that of its newest entry, and
    agents' evidence is weighed with the thresholds that components recorded. In a log of one owner they are that owner's."""
    agents, owners, latest = {}, {}, dict(DEFAULTS)
    journals, namespaces, clock = set(), {}, None
    for entry in entries:
        kind, result, detail = entry["kind"], entry["result"], entry.get("detail", {})
        owner = entry.get("source", "").split("#")[0]
        by_agent = AGENT.fullmatch(owner)
        if by_agent:
            journals.add(owner)
        else:
            clock = max(clock or "", entry.get("timestamp", ""))
        bound = by_agent and clock is not None
        limits = owners.get(owner, DEFAULTS)
        if kind == "configuration":
            if "thresholds" in detail and not bound:
                if isinstance(detail.get("namespace"), str):
                    name = detail["namespace"]
                    own = thresholds_of(detail["thresholds"], namespaces.get(name))
                    namespaces = {**namespaces, name: own if detail["thresholds"] is not None else None}
                else:
                    latest = owners[owner] = thresholds_of(detail["thresholds"], limits)
            continue
        name, risk = entry.get("agent_id"), min(entry.get("risk", 0), 1000)
        if not (isinstance(name, str) and AGENT.fullmatch(name)):
            continue
        if by_agent and (kind == "trust_adjusted" or kind == "outcome" and name != owner):
            continue
        if bound and name != owner and name not in journals:
            continue
        if bound:
            limits = namespaces.get(name.split("/")[4] if "/ns/" in name else "") or latest
        if kind == "decision" and result == "deny" and entry.get("reason") in AGAINST:
            agents.setdefault(name, Posterior()).violated(risk)
        elif kind == "outcome" and entry.get("reason") == "glass_broken":
            continue  # A human had lifted the policies: that it went well says nothing.
        elif kind == "outcome" and result == "success" and entry.get("action", {}).get("kind") in KINDS:
            risky, hour = entry.get("tier") == "L3", hour_of(clock if bound else entry["timestamp"])
            within = name == owner and entry["action"].get("server") == name.rsplit("/", 1)[1]
            # The agent's own word earns nothing, nor does a server in its own pod; risk wears all the same.
            if within or entry["action"].get("protocol") in ("kernel", "ide"):
                if not risky:
                    continue
                risk = 0
            agents.setdefault(name, Posterior()).succeeded(risk, risky, hour, limits)
        elif kind == "trust_adjusted" and whole(detail.get("a")) and whole(detail.get("b")):
            agents.setdefault(name, Posterior()).adjusted(detail["a"], detail["b"])
    return agents, latest


def entry_of(line):
    """`aegis audit export --jsonl` wraps each entry with its index and leaf hash."""
    return line.get("entry", line)


def main(arguments):
    if set(arguments) - {"--critical"}:
        sys.exit(__doc__)
    agents, limits = fold(entry_of(json.loads(line)) for line in sys.stdin if line.strip())
    shown = {name: {"a": p.a, "b": p.b, "score": p.score()} for name, p in agents.items()}
    for name, posterior in agents.items() if "--critical" in arguments else ():
        below = posterior.below(limits["criticalScore"])
        shown[name].update(below=below, critical=below >= limits["criticalConfidence"])
    print(json.dumps(shown, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
