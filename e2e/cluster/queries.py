#!/usr/bin/env python3
"""Asks a real Prometheus, which scrapes the components of a cluster where something has happened, every query of every
dashboard and every alert.

    queries.py REPORT.json TARGET…      TARGET is JOB=HOST:PORT[,LABEL=VALUE…]; run it where these can be reached

A query that Prometheus refuses is a failure. One whose metric no target has is `not shown`; one that gives 0 or nothing
although its metric is there is told too, because nothing in the run has caused it. Prometheus is Debian's, on a free
port of 127.0.0.1, with its data in a scratch folder, and ends with this program.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

CHART = Path(__file__).resolve().parents[2] / "charts/aegis"
# Long enough for `rate` to have several points of a scrape every second.
RANGE, SCRAPES = "20s", 12


def configuration(targets):
    jobs = []
    for target in targets:
        name, _, rest = target.partition("=")
        address, *labels = rest.split(",")
        static = {"targets": [address], "labels": dict(label.split("=", 1) for label in labels)}
        jobs.append({"job_name": f"{name}-{len(jobs)}", "static_configs": [static]})
    return {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}


def queries():
    """(where, query)"""
    for path in sorted(CHART.glob("dashboards/*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", RANGE)


def ask(base, path, **parameters):
    with urllib.request.urlopen(f"{base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)["data"]


def judge(base, known, query):
    metrics = set(re.findall(r"\b(?:aegis|controller_runtime|workqueue|leader_election)_[a-z_]+", query))
    missing = {metric for metric in metrics if metric not in known}
    if missing:
        return "not shown", f"nothing here has {', '.join(sorted(missing))}"
    values = [float(one["value"][1]) for one in ask(base, "query", query=query)["result"]]
    if any(value > 0 for value in values):
        return "ok", f"{max(values):g}"
    return "not shown", "nothing in this run has caused it"


def main():
    report, *targets = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prometheus.json"
        file.write_text(json.dumps(configuration(targets)))
        command = [
            "prometheus", f"--config.file={file}", f"--storage.tsdb.path={scratch}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        with subprocess.Popen(command) as prometheus:
            try:
                deadline = time.monotonic() + 60
                while True:
                    try:
                        if float(ask(base, "query", query="min(count_over_time(up[60s]))")["result"][0]["value"][1]) >= SCRAPES:
                            break
                    except (OSError, IndexError):
                        pass
                    if time.monotonic() > deadline or prometheus.poll() is not None:
                        sys.exit("queries.py: prometheus did not scrape")
                    time.sleep(0.5)
                down = [one["metric"]["instance"] for one in ask(base, "query", query="up == 0")["result"]]
                known = set(ask(base, "label/__name__/values"))
                for where, query in queries():
                    try:
                        state, detail = judge(base, known, query)
                    except urllib.error.HTTPError as error:
                        state, detail = "FAILED", error.read().decode()[:300]
                    lines.append({"state": state, "what": where, "detail": detail})
            finally:
                prometheus.terminate()
    lines += [{"state": "FAILED", "what": f"{one} is scraped", "detail": "it is down"} for one in down]
    for line in lines:
        print(f"{line['state']:<10} {line['what']}: {line['detail']}")
    Path(report).write_text(json.dumps(lines, indent=1) + "\n")
    sys.exit(1 if any(line["state"] == "FAILED" for line in lines) else 0)


main()
