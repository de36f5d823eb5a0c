"""Times the policy evaluator of agent-governance-toolkit-core in this process.

Reads one line, {"regex": bool, "context": {...}}: what to decide. Then, for each further line, a number of
milliseconds, it evaluates for so long and prints the nanoseconds of one decision. The clock runs around the
loop alone. A wrong decision ends the process.
"""

import importlib.metadata
import json
import sys
import time

from agent_os.policies import PolicyDocument, PolicyEvaluator


def rule(name, field, operator, value, action, priority):
    condition = {"field": field, "operator": operator, "value": value}
    return {"name": name, "condition": condition, "action": action, "priority": priority}


def document(regex):
    rules = [
        rule("low-trust", "trust", "lt", 300, "deny", 10),
        rule("hasty", "rate", "gt", 100, "deny", 10),
        rule("table", "table", "in", ["users", "secrets"], "deny", 10),
        rule("tools", "tool", "in", ["read_query", "write_query", "list_tables"], "allow", 0),
    ]
    if regex:
        rules.append(rule("no-drop", "query", "matches", r"(?i)\b(drop|truncate)\s+table\b", "deny", 10))
    return PolicyDocument.model_validate({"name": "bench", "rules": rules})


def main():
    case = json.loads(sys.stdin.readline())
    evaluate = PolicyEvaluator(policies=[document(case["regex"])]).evaluate
    context = case["context"]
    denied = evaluate({**context, "trust": 100})
    if denied.allowed or denied.matched_rule != "low-trust":
        sys.exit("it allows what is denied")
    print(importlib.metadata.version("agent-governance-toolkit-core"), flush=True)
    for line in sys.stdin:
        wanted, count = int(line) * 1_000_000, 0
        start = time.perf_counter_ns()
        while (took := time.perf_counter_ns() - start) < wanted:
            for _ in range(64):
                if not evaluate(context).allowed:
                    sys.exit("it denied what is allowed")
            count += 64
        print(took // max(count, 1), flush=True)


main()
