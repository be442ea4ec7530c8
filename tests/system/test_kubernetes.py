"""deploy/kubernetes: the manifests are valid, their numbers agree, and a pod ends there without a lost request."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from loadtest.ledger import Left
from serve_asgi.supervisor.retiring import KILL_MARGIN
from tests.image import parse
from tests.running import PATIENCE, ROOT
from tests.system.balancer import Balancer, Layer
from tests.system.balancing import DEPLOY, Node, StrictLoad, pids_of, serving
from tests.system.pods import assert_image_fits, killed_after, options_of, replaced_after, started_within, starts_within

pytestmark = pytest.mark.once

MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "app.yaml").read_text()))
BY_KIND = {manifest["kind"]: manifest for manifest in MANIFESTS}
POD = BY_KIND["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
OPTIONS = dict(argument.removeprefix("--").split("=") for argument in CONTAINER["args"] if argument.startswith("--"))
SCALE = 3
"""How much faster than in a cluster all goes here."""
LAG = 6.0 / SCALE
"""Seconds from TERM until no kube-proxy or ingress sends anything new to the pod."""
LOOK = 1.0
"""Seconds between two looks of a worker at how long the drain has lasted."""
KINDS = ("keep-alive", "one-shot", "split head", "slow upload", "slow response", "WebSocket")


@pytest.mark.parametrize("version", ["1.25", "1.31", "1.37"])
def test_the_manifests_are_valid(version: str) -> None:
    for manifest in MANIFESTS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_the_deployment_with_tls_is_valid(version: str) -> None:
    """app.yaml as `kubectl patch` leaves it; the Certificate is cert-manager's, whose schema is not at hand."""
    certificate, service = yaml.safe_load_all((DEPLOY / "kubernetes" / "certificate.yaml").read_text())
    kubernetes_validate.validate(service, version, strict=True)
    assert service["spec"]["selector"] == BY_KIND["Service"]["spec"]["selector"]
    patch = yaml.safe_load((DEPLOY / "kubernetes" / "tls-patch.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = patch["containers"]
    together = {
        **CONTAINER,
        "args": container["args"],
        **{name: CONTAINER[name] + container[name] for name in ("ports", "volumeMounts")},
    }
    pod = {**POD, **patch, "containers": [together], "volumes": POD["volumes"] + patch["volumes"]}
    deployment = BY_KIND["Deployment"]
    template = {**deployment["spec"]["template"], "spec": pod}
    kubernetes_validate.validate(
        {**deployment, "spec": {**deployment["spec"], "template": template}}, version, strict=True
    )
    assert container["name"] == CONTAINER["name"]
    plain, secure = [argument for argument in container["args"] if argument.startswith("--bind")]
    kept = [argument for argument in CONTAINER["args"] if not argument.startswith("--bind")]
    assert [argument for argument in container["args"] if not argument.startswith(("--bind", "--tls"))] == kept
    assert plain == "--bind=http://:" + OPTIONS["bind"].removeprefix(":")
    assert secure == f"--bind=https://:{container['ports'][0]['containerPort']}"
    (volume,) = patch["volumes"]
    assert volume["secret"]["secretName"] == certificate["spec"]["secretName"]
    mounted = container["volumeMounts"][0]["mountPath"]
    files = {argument.partition("=")[2] for argument in container["args"] if argument.startswith("--tls")}
    assert files == {f"{mounted}/tls.crt", f"{mounted}/tls.key"}


def test_the_validator_finds_what_is_wrong() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**BY_KIND["Service"], "spec": {"ports": [{"port": "eighty"}]}}, "1.31", strict=True
        )


def test_the_image_of_the_dockerfile_runs_in_the_pod() -> None:
    assert_image_fits(POD, parse((ROOT / "Dockerfile").read_text())[-1])
    assert BY_KIND["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_numbers_agree() -> None:
    delay, graceful, shutdown = (
        float(OPTIONS[f"{n}"]) for n in ("drain-delay", "graceful-timeout", "shutdown-timeout")
    )
    assert delay + graceful + shutdown + KILL_MARGIN < POD["terminationGracePeriodSeconds"]
    # From here on each answer ends its connection, and there is as much time again for each connection to be used.
    assert 2 * (float(OPTIONS["drain-close-after"]) + LOOK) <= delay
    config = options_of(CONTAINER)
    assert started_within(CONTAINER) >= starts_within(config)
    assert killed_after(CONTAINER) >= replaced_after(config), (
        "liveness must leave the server time to replace its workers"
    )
    assert BY_KIND["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "lifecycle" not in CONTAINER, "the manifest says that no preStop hook is needed"


def test_what_belongs_together_does() -> None:
    labels = BY_KIND["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [BY_KIND[kind]["spec"]["selector"] for kind in ("Deployment", "Service", "PodDisruptionBudget")]
    assert [selector.get("matchLabels", selector) for selector in selectors] == [labels] * 3
    assert BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "app"
    policy = BY_KIND["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert [rule["ports"] for rule in policy["ingress"] if "from" in rule] == [[{"port": "admin"}]]
    names = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert OPTIONS["bind"] == f":{names['http']}"
    assert OPTIONS["admin"] == f":{names['admin']}"
    annotations = BY_KIND["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(names["admin"])
    ports = [BY_KIND["Service"]["spec"]["ports"][0]["targetPort"]]
    ports += [CONTAINER[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")]
    assert set(ports) == {"http"}


def probed(node: Node, probe: str) -> bool:
    """What the kubelet finds by a probe of the manifest (any status from 200 to 399 is good)."""
    connection = http.client.HTTPConnection(node.host, node.port, timeout=CONTAINER[f"{probe}Probe"]["timeoutSeconds"])
    try:
        connection.request("GET", CONTAINER[f"{probe}Probe"]["httpGet"]["path"])
        return 200 <= connection.getresponse().status < 400
    finally:
        connection.close()


def pod(name: str, directory: Path) -> Node:
    """A node with the manifest's options, faster."""
    times = ("drain-delay", "drain-close-after", "graceful-timeout", "shutdown-timeout")
    return Node(
        name, directory, "--workers", "1", *(f"--{option}={float(OPTIONS[option]) / SCALE}" for option in times)
    )


def test_a_rolling_update_as_kubernetes_does_it_loses_nothing(tmp_path: Path) -> None:
    """One pod more, then TERM for an old one, and only seconds later does nothing new come to it any more.

    Connections are passed on as kube-proxy does: those that stand persist, whatever becomes of the endpoint.
    """
    old, other, new = (pod(name, tmp_path) for name in ("old", "other", "new"))
    grace = POD["terminationGracePeriodSeconds"] / SCALE
    with serving(old, other), Balancer([(p.host, p.port) for p in (old, other, new)], Layer.TCP, None) as service:
        service.remove(2)
        with StrictLoad(service.port, old.executions, kinds=KINDS) as load:
            load.answered_by(pids_of(old))
            with serving(new):
                assert probed(new, "readiness")
                service.add(2)
                load.answered_by(pids_of(new))

                leaving = pids_of(old)
                old.server.signal(signal.SIGTERM)
                ends = time.monotonic() + grace
                lagging = threading.Timer(LAG, service.remove, [0])
                lagging.start()
                load.until(lambda: not probed(old, "readiness"), "the drain")
                assert probed(old, "liveness")
                load.answered_by(leaving, 5)  # traffic keeps coming
                lagging.join(PATIENCE)
                assert old.server.wait(ends - time.monotonic()) == 0, "the kubelet would have sent KILL"
                load.answered_by(pids_of(new))
                verdict = load.finish()
        print(verdict.text())
        assert verdict.faults(reconnects=[Left.ANNOUNCED]) == []
        assert verdict.left(Left.ANNOUNCED) > 0
        assert verdict.streams["streams"] > 3, "no stream of events was told to come again"
