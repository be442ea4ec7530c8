"""deploy/helm: the chart passes Helm's own lint and schema, and what it renders is valid and agrees with the server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, HelmValuesError
from helm_python.chart import lint

from serve_asgi.supervisor.retiring import KILL_MARGIN
from tests.image import parse
from tests.running import ROOT
from tests.system.balancing import DEPLOY
from tests.system.pods import assert_image_fits, killed_after, options_of, replaced_after, started_within, starts_within

pytestmark = pytest.mark.once

CHART = DEPLOY / "helm" / "serve"
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "app": "shop.web:create_app",
        "workers": 4,
        "workerTimeout": 45,
        "preload": "on",
        "canary": {"enabled": True, "share": 10},
        "drain": {"by": "preStop", "delay": 20},
        "gracefulTimeout": 120,
        "autoscaling": {"enabled": True},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "options": ["--factory", "--max-requests=10000"],
        "env": [{"name": "DATABASE", "value": "x"}],
        "nodeSelector": {"disk": "ssd"},
        "podAnnotations": {"note": "x"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "tls": {
        "tls": {"enabled": True, "secret": "shop-tls"},
        "service": {"port": 443},
        "extraGrace": 60,
        "options": ["--agent=shop.jobs:agent", "--agent-timeout=60"],
        "networkPolicy": {"enabled": True},
    },
    "little": {
        "startupTimeout": 1,
        "workerTimeout": 0,
        "admin": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "image": {"tag": 7},
    },
}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


def rendered(chart: Chart, values: dict[str, Any], name: str = "shop") -> dict[str, dict[str, Any]]:
    """The manifests by kind."""
    texts = chart.render(values, name=name, namespace="default")
    found = [yaml.safe_load(text) for path, text in texts.items() if path.endswith(".yaml") and text.strip()]
    return {manifest["kind"]: manifest for manifest in found if manifest}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_finds_nothing_wrong(values: dict[str, Any]) -> None:
    found = lint(CHART, values, strict=True)
    assert found["errors"] == []
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_what_it_renders_is_valid(chart: Chart, values: dict[str, Any], version: str) -> None:
    for kind, manifest in rendered(chart, values).items():
        if kind not in ("PodMonitor", "PrometheusRule"):  # of Prometheus' operator, whose schema is not at hand
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_server_takes_the_options_and_the_numbers_agree(chart: Chart, values: dict[str, Any]) -> None:
    pod = rendered(chart, values)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = options_of(container)

    drain = {"delay": 15, "by": "term", **values.get("drain", {})}
    assert config.drain_delay == (drain["delay"] if drain["by"] == "term" else 0)
    used = drain["delay"] + config.graceful_timeout + config.shutdown_timeout + KILL_MARGIN
    used += values.get("extraGrace", 0)
    assert used < pod["terminationGracePeriodSeconds"] <= used + 10
    assert 0 <= started_within(container) - starts_within(config) <= 4
    if config.worker_timeout:
        assert replaced_after(config) <= killed_after(container) <= replaced_after(config) + 10
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    assert hook == (["sh", "-c", f"serve drain; sleep {drain['delay']}"] if drain["by"] == "preStop" else [])

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    if "https" in ports:
        assert config.bind == (f"http://:{ports['http']}", f"https://:{ports['https']}")
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
        assert {os.path.dirname(path) for path in (*config.tls_cert, *config.tls_key)} == {mount["mountPath"]}
    else:
        assert config.bind == (f":{ports['http']}",)
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {container[probe]["httpGet"]["port"] for probe in probes} == {"http"}, "which never speaks TLS"
    assert config.admin == (f":{ports['admin']}" if "admin" in ports else "")
    assert container["readinessProbe"]["httpGet"]["path"] == config.health_path
    assert container["livenessProbe"]["httpGet"]["path"] == f"{config.health_path}?live"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_image_of_the_dockerfile_runs_in_its_pod(chart: Chart, values: dict[str, Any]) -> None:
    found = rendered(chart, values)
    assert_image_fits(found["Deployment"]["spec"]["template"]["spec"], parse((ROOT / "Dockerfile").read_text())[-1])
    expected = "https" if values.get("tls") else "http"
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == expected


def test_what_belongs_together_does(chart: Chart) -> None:
    found = rendered(chart, VALUES["everything"])
    template = found["Deployment"]["spec"]["template"]
    selector = found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert found["Service"]["spec"]["selector"] == selector
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selector
    assert found["PodMonitor"]["spec"]["selector"]["matchLabels"] == selector
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == "9180"
    little = rendered(chart, VALUES["little"], name="serve-shop")
    assert set(little) == {"Deployment", "Service"}
    assert little["Service"]["metadata"]["name"] == "serve-shop"
    assert "annotations" not in little["Deployment"]["spec"]["template"]["metadata"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"app": "app"}, "/app"),
        ({"workers": 0}, "/workers"),
        ({"drain": {"by": "kill"}}, "/drain/by"),
        ({"worker": 9}, ""),
        ({"replicaCount": 5}, ""),
        ({"service": {"prot": 80}}, "/service"),
        ({"options": ["-w4"]}, "/options/0"),
    ],
)
def test_wrong_values_are_refused(chart: Chart, values: dict[str, Any], place: str) -> None:
    with pytest.raises(HelmValuesError, match=f"at '{place}'"):
        chart.validate_schema(values)


def test_the_schema_knows_each_value_and_nothing_else() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) == {*values, "global"}, "global is Helm's own"
    assert schema["additionalProperties"] is False
    for name, each in schema["properties"].items():
        if "properties" in each:
            assert set(each["properties"]) == set(values[name]), name
            assert each["additionalProperties"] is False, name


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_options_that_have_values_of_their_own_are_refused_among_the_others(
    chart: Chart, values: dict[str, Any]
) -> None:
    """A second --drain-delay would count for the server, and not for the grace period."""
    (container,) = rendered(chart, values)["Deployment"]["spec"]["template"]["spec"]["containers"]
    for argument in container["args"][1:]:
        if argument not in values.get("options", []) and not argument.startswith("--bind="):
            with pytest.raises(HelmError, match=f"options: {re.escape(argument)} has a value of its own"):
                rendered(chart, {"options": [argument]})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"admin": {"port": 8000}}, "must differ"),
        ({"tls": {"enabled": True, "secret": "x", "port": 9180}}, "must differ"),
        ({"tls": {"enabled": True}}, "tls.enabled needs tls.secret"),
        ({"options": ["--max-requests=1", "--no-canary"]}, "options: --no-canary has a value of its own"),
        ({"networkPolicy": {"enabled": True, "metricsFrom": []}}, "would admit everybody"),
    ],
)
def test_values_that_contradict_each_other_are_refused(chart: Chart, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError, match=sentence):
        rendered(chart, values)


def test_tls_and_the_network_policy(chart: Chart) -> None:
    found = rendered(chart, VALUES["tls"])
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert found["Service"]["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "https"}]
    assert {"secretName": "shop-tls", "defaultMode": 0o440} in [each.get("secret") for each in pod["volumes"]]
    assert pod["securityContext"]["fsGroup"], "the key is readable for a group"
    application, admin = found["NetworkPolicy"]["spec"]["ingress"]
    assert (application["ports"], admin["ports"]) == ([{"port": "https"}], [{"port": "admin"}])
    assert "from" not in application
    assert admin["from"]


def test_the_charts_alerts_are_those_of_the_example_for_the_job_of_its_pod_monitor(chart: Chart) -> None:
    text = (DEPLOY / "prometheus" / "serve.rules.yml").read_text()
    assert (CHART / "files" / "serve.rules.yml").read_text() == text
    found = rendered(chart, VALUES["everything"])
    job = f"default/{found['PodMonitor']['metadata']['name']}"
    assert found["PrometheusRule"]["spec"] == yaml.safe_load(text.replace('job="serve"', f'job="{job}"'))
    assert job in found["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["expr"]
