#!/usr/bin/env python3
"""Judges results of the MCP conformance suite.

    conformance_report.py direct FOLDER PASSED          every check passes, and there are PASSED of them
    conformance_report.py compare DIRECT THROUGH        the same checks with the same status, by scenario
    conformance_report.py records CALLS ENTRIES         as many recorded decisions as calls that arrived

A FOLDER is what the suite's `-o` wrote: one folder per scenario with a `checks.json`. CALLS is what
the fixture's `GET /calls` answers; ENTRIES is what `aegis audit query -o json` prints: an array, or
one entry per line. Standard library only. The exit status is 0 only if everything holds.
"""
import collections
import json
import pathlib
import re
import sys

# `server-<scenario>-2026-11-23T04-37-11-251Z`: the scenario and when it ran.
FOLDER = re.compile(r"^(?:server-)?(.+)-\d{4}-\d\d-\d\dT[\d-]+Z$")
# A notice is no verdict: it may differ from run to run.
NOTICES = {"INFO"}


def scenarios(folder):
    """{scenario: {check: status counts}} of one run."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*/checks.json")):
        name = FOLDER.match(path.parent.name)
        checks = collections.defaultdict(collections.Counter)
        for check in json.loads(path.read_text()):
            if check["status"] not in NOTICES:
                checks[check["id"]][check["status"]] += 1
        found[name.group(1) if name else path.parent.name] = dict(checks)
    if not found:
        sys.exit(f"{folder} holds no results of the conformance suite")
    return found


def tally(checks):
    """(passed, failed, others) of one scenario."""
    total = sum(checks.values(), collections.Counter())
    failed = total["FAILURE"] + total["WARNING"]
    return total["SUCCESS"], failed, sum(total.values()) - total["SUCCESS"] - failed


def direct(folder, wanted):
    results = scenarios(folder)
    sums = [sum(column) for column in zip(*map(tally, results.values()))]
    for name, checks in results.items():
        if tally(checks)[1]:
            bad = sorted(check for check, status in checks.items() if set(status) - {"SUCCESS", "SKIPPED"})
            print(f"  {name}: {', '.join(bad)}")
    print(f"  direct: {sums[0]} passed, {sums[1]} failed, {sums[2]} skipped, {len(results)} scenarios; wanted {wanted} passed")
    return sums[0] == int(wanted) and sums[1] == 0


def compare(before, after):
    one, other = scenarios(before), scenarios(after)
    alike = True
    print(f"  {'scenario':<48} {'direct':>8} {'Aegis':>8}")
    for name in sorted(one | other):
        a, b = one.get(name), other.get(name)
        same = a == b
        alike &= same
        shown = ["absent" if side is None else "{}/{}".format(tally(side)[0], sum(tally(side)[:2])) for side in (a, b)]
        print(f"  {name:<48} {shown[0]:>8} {shown[1]:>8}  {'' if same else 'DIFFERS'}")
        for check in sorted((a or {}).keys() | (b or {}).keys()) if not same else []:
            sides = [dict((side or {}).get(check, {})) for side in (a, b)]
            if sides[0] != sides[1]:
                print(f"      {check}: direct {sides[0] or 'absent'}, through Aegis {sides[1] or 'absent'}")
    return alike


def entries(path):
    """Entries as a flat list, whether an array or lines, bare or under `entry`."""
    text = pathlib.Path(path).read_text().strip()
    items = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [item.get("entry", item) for item in items]


def records(calls, log):
    arrived = json.loads(pathlib.Path(calls).read_text())
    recorded = entries(log)
    allowed = [e for e in recorded if e["kind"] == "decision" and e["result"] == "allow"]
    outcomes = collections.Counter(e.get("decision_id") for e in recorded if e["kind"] == "outcome")
    methods = collections.Counter(e["action"].get("method") for e in allowed)
    tools = collections.Counter(e["action"].get("tool") for e in allowed if e["action"].get("method") == "tools/call")
    sound = True
    for heading, wanted, found in (("request", arrived["requests"], methods), ("tool", arrived["tools"], tools)):
        for name in sorted(wanted | (found if heading == "tool" else {})):
            if wanted.get(name, 0) != found.get(name, 0):
                sound = False
                print(f"  {heading} {name}: {wanted.get(name, 0)} arrived, {found.get(name, 0)} recorded as allowed")
    lost = [e["decision_id"] for e in allowed if outcomes[e["decision_id"]] != 1]
    if lost:
        sound = False
        print(f"  {len(lost)} allowed decisions without exactly one outcome, such as {lost[0]}")
    denied = sum(e["kind"] == "decision" and e["result"] == "deny" for e in recorded)
    print(f"  records: {sum(arrived['requests'].values())} requests arrived ({sum(arrived['tools'].values())} calls of tools); "
          f"{len(allowed)} decisions allow, {denied} deny, {sum(outcomes.values())} outcomes")
    return sound


if __name__ == "__main__":
    commands = {"direct": direct, "compare": compare, "records": records}
    if len(sys.argv) != 4 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    sys.exit(0 if commands[sys.argv[1]](*sys.argv[2:]) else 1)
