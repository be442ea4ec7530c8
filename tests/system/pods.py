"""What a container's probes mean for the server in it: how long it may take to start, and when it is killed; and what a
pod needs of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_asgi.config.options import Config
from serve_asgi.config.sources import build, several
from serve_asgi.config.values import Given
from serve_asgi.listener.blocked_workers import BEAT, LONGEST_PERIOD, ROUNDS, STACKS_TIME
from tests.image import Instruction

Container = dict[str, Any]


def options_of(container: Container, environment: Mapping[str, str] | None = None) -> Config:
    """The options that a container's arguments give, and the image's environment; raises for what is wrong."""
    app, *options = container["args"]
    given: dict[str, Given] = {}
    for option in options:
        name, equals, text = option.removeprefix("--").partition("=")
        field = name.replace("-", "_")
        if several(field):
            before = given.get(field, ())
            assert isinstance(before, tuple)
            given[field] = (*before, text)
        else:
            given[field] = text if equals else True
    return build(app, given, dict(environment or {}))


def started_within(container: Container) -> float:
    """Seconds that the server has from its start until it answers; then the kubelet kills it."""
    probe = container["startupProbe"]
    return float(probe["periodSeconds"] * probe["failureThreshold"])


def starts_within(config: Config) -> float:
    """Seconds that a server may take on one core: its workers start one after the other, after their template."""
    return config.startup_timeout * (config.workers + (config.preload != "off"))


def killed_after(container: Container) -> float:
    """Fewest seconds from the moment from which no worker answers until the kubelet kills the container."""
    probe = container["livenessProbe"]
    return float((probe["failureThreshold"] - 1) * probe["periodSeconds"] + probe["timeoutSeconds"])


def replaced_after(config: Config) -> float:
    """Most seconds from the moment from which every worker is blocked until another one answers."""
    timeout = config.worker_timeout
    return timeout + BEAT + min(LONGEST_PERIOD, timeout / ROUNDS) + STACKS_TIME + config.startup_timeout


def assert_image_fits(pod: dict[str, Any], stage: Sequence[Instruction]) -> None:
    """Fail unless the last stage of a Dockerfile is an image that this pod of Kubernetes can run."""
    (container,) = pod["containers"]
    last = {step.name: step for step in stage}
    environment = dict(word.split("=", 1) for step in stage if step.name == "ENV" for word in step.words)
    assert container.get("command", last["ENTRYPOINT"].command) == ["serve"]  # before the pod's `args`
    assert environment["PATH"].startswith("/opt/serve/bin:")  # `serve` of preStop and of kubectl exec

    user, _, group = last["USER"].rest.partition(":")
    assert int(user) > 0  # the kubelet cannot tell of a name that it is not root's (runAsNonRoot)
    assert int(group) > 0
    assert {**pod.get("securityContext", {}), **container["securityContext"]}["runAsNonRoot"]
    assert "runAsUser" not in container["securityContext"]

    config = options_of(container, environment)
    assert config.bind == options_of(container).bind  # whatever the image says for Docker
    bind = config.bind[0]  # with TLS there is another one beside the plain port
    http = next(port["containerPort"] for port in container["ports"] if port["name"] == "http")
    assert last["EXPOSE"].words == [str(http)] == [bind.rpartition(":")[2]]
    assert environment["PORT"] == str(http)

    assert container["securityContext"]["readOnlyRootFilesystem"]
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in empty}
    assert not {"RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"} & environment.keys()
    assert "/tmp" in writable  # where the control socket is then, and the agent's lock
    assert (config.pid_file, config.control) == ("", "")
