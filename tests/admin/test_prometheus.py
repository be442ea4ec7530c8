"""A real Prometheus scrapes a real server with the configuration and the alerts of deploy/prometheus."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.admin.scraping import ADMIN, GROWING, admin_address, scrape, value
from tests.admin.test_metrics import Clients, workers_of
from tests.applications import info
from tests.certificates import Authority
from tests.running import PATIENCE, ROOT, running, until

pytestmark = pytest.mark.once
DEPLOY = ROOT / "deploy" / "prometheus"


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API, or None while it gives none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", f"/api/v1/{path}?{urlencode(query)}")
            answer = connection.getresponse()
            text = answer.read()
            return json.loads(text)["data"] if answer.status == 200 else None
        return None

    def value(self, query: str) -> float | None:
        """The value of a query that gives one series; None if it gives none."""
        data = self.ask("query", query=query)
        found = data["result"] if data else []
        assert len(found) <= 1, f"{query}: {found}"
        return float(found[0]["value"][1]) if found else None

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        until(condition, what)


ALERTS = """
rule_files: [serve.rules.yml]
evaluation_interval: 10s
tests:
  - name: a slot whose workers die again and again, with a moment in between
    interval: 10s
    input_series:
      - {series: 'serve_slot_degraded{instance="a", slot="0"}', values: "0x11 1 1 1 0 1 1 1 1 1 0 1 1 1 1"}
      - {series: 'serve_slot_degraded{instance="a", slot="1"}', values: "0x11 1 1 0x30"}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertname="ServeSlotDegraded"})', eval_time: 4m10s, exp_samples: [{value: 1}]}
  - name: a target that is down, and a job without any
    interval: 10s
    input_series:
      - {series: 'up{job="serve", instance="a"}', values: "1 0x20"}
    alert_rule_test:
      - {alertname: ServeDown, eval_time: 30s, exp_alerts: []}
      - alertname: ServeDown
        eval_time: 50s
        exp_alerts:
          - exp_labels: {job: serve, instance: a, severity: critical}
            exp_annotations:
              summary: a gives no metrics
              description: The server is down, it runs without --admin, or Prometheus does not find it.
  - name: no target at all
    interval: 10s
    alert_rule_test:
      - alertname: ServeDown
        eval_time: 50s
        exp_alerts:
          - exp_labels: {job: serve, severity: critical}
            exp_annotations:
              summary: There is no target of the job serve
              description: The server is down, it runs without --admin, or Prometheus does not find it.
  - name: a canary that was taken back
    interval: 1m
    input_series:
      - {series: 'serve_deploys_total{instance="a", outcome="taken_back"}', values: "0 0 1x30"}
      - {series: 'serve_deploys_total{instance="a", outcome="done"}', values: "0 0 1x30"}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertname="ServeCanaryTakenBack"})', eval_time: 3m, exp_samples: [{value: 1}]}
      - {expr: 'count(ALERTS{alertname="ServeCanaryTakenBack"})', eval_time: 20m, exp_samples: []}
"""
"""What Prometheus sees, and which alerts it raises then."""


def dashboard_queries() -> list[str]:
    """What the example dashboard for Grafana asks."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [each["expr"] for each in dashboard["annotations"]["list"]]


@contextlib.contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` five times a second; ended when the block ends."""
    program = shutil.which("prometheus")
    assert program is not None
    written = (DEPLOY / "prometheus.yml").read_text().replace("127.0.0.1:9180", target)
    (directory / "prometheus.yml").write_text(re.sub(r"(_interval): 5s", r"\1: 200ms", written))
    shutil.copy(DEPLOY / "serve.rules.yml", directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


@pytest.mark.needs("prometheus")
def test_it_scrapes_sees_no_counter_reset_and_raises_the_alert(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", "--no-access-log", *ADMIN, directory=tmp_path) as server:
        address = admin_address(server)
        with prometheus(tmp_path, "{}:{}".format(*address)) as seen:
            seen.wait("it does not scrape", lambda: seen.value('up{job="serve"}') == 1)
            with Clients(server) as clients:
                for _ in range(2):
                    server.reload()
                    os.kill(workers_of(server)[0], signal.SIGKILL)
                    server.wait_until(lambda status: [w["state"] for w in status["workers"]].count("serving") >= 2)
                (tmp_path / "app.py").write_text("import nothing_of_this_name")
                server.signal(signal.SIGHUP)
                seen.wait("the refusal is not seen", lambda: seen.value("serve_last_reload_successful") == 0)
            expected = value(scrape(address), "serve_requests_total")
            assert clients.answered <= expected
            seen.wait("not all requests are seen", lambda: seen.value("serve_requests_total") == expected)
            counters = {name for name, _ in scrape(address) if name.endswith(GROWING)}
            assert {name: seen.value(f"sum(resets({name}[5m]))") for name in counters} == dict.fromkeys(counters, 0)
            assert seen.value("serve_generation") == 3
            assert seen.value('count(serve_worker_cpu_seconds_total{job="serve"})') == 2
            assert (seen.value("histogram_quantile(0.5, rate(serve_request_duration_seconds_bucket[1m]))") or 0) > 0
            firing = 'ALERTS{alertname="ServeReloadRefused", alertstate="firing"}'
            seen.wait("the alert is not raised", lambda: seen.value(firing) == 1)
            for query in dashboard_queries():
                assert seen.ask("query", query=query.replace("$instance", ".*")) is not None, query
            assert [g["name"] for g in seen.ask("rules")["groups"]] == ["serve"]
            assert all(rule["health"] == "ok" for g in seen.ask("rules")["groups"] for rule in g["rules"])
        assert server.stop() == 0


@pytest.mark.needs("promtool")
def test_the_example_configuration_and_its_alerts_are_valid() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "serve.rules.yml")):
        checked = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_documentation_has_each_alert() -> None:
    told = re.findall(r"^\| (Serve\w+) \|", (ROOT / "docs" / "guides" / "metrics.md").read_text(), re.MULTILINE)
    assert told == re.findall(r"- alert: (\w+)", (DEPLOY / "serve.rules.yml").read_text())


@pytest.mark.needs("promtool")
def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """promtool's own tests (https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules)."""
    shutil.copy(DEPLOY / "serve.rules.yml", tmp_path)
    (tmp_path / "test.yml").write_text(ALERTS)
    checked = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.needs("promtool")
def test_the_alerts_and_the_dashboard_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    certificate, key = Authority().server("localhost").write(tmp_path)
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with running("app:app", *ADMIN, *tls, "--state", "state.sqlite", directory=tmp_path) as server:
        there = {name for name, _ in scrape(admin_address(server))}
        asked = re.findall(r"\bserve_[a-z_]+", "\n".join(dashboard_queries()))
        asked += re.findall(
            r"\bserve_[a-z_]+", "\n".join(re.findall(r"expr: (.*)", (DEPLOY / "serve.rules.yml").read_text()))
        )
        assert asked
        assert set(asked) <= there
        assert server.stop() == 0
