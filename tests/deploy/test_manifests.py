"""The manifests for Kubernetes: sound by its schema, where that is installed, and agreed with the commands."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devicekit.server.app import ENDPOINTS
from tests.docs.parsing import parse

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def objects() -> Iterator[dict[str, Any]]:
    for name in NAMES:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in objects() if one["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"] for one in of_kind("Deployment")]


def test_the_schema_of_kubernetes_takes_them() -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed: pip install kubernetes-validate")
    import kubernetes_validate

    for one in objects():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_every_file_is_listed_and_no_object_is_there_twice() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == NAMES
    known = [(one["kind"], one["metadata"]["name"]) for one in objects()]
    assert len(known) == len(set(known))
    assert {"Service", "Deployment", "PersistentVolumeClaim", "PodDisruptionBudget"} <= {
        kind for kind, _ in known
    }


def test_services_and_budgets_find_pods_and_ports_of_their_names() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods()]
    for one in of_kind("Deployment"):
        assert (
            one["spec"]["selector"]["matchLabels"].items()
            <= one["spec"]["template"]["metadata"]["labels"].items()
        )
    for one in of_kind("PodDisruptionBudget"):
        assert one["spec"]["selector"]["matchLabels"] in labels
    for one in of_kind("Service"):
        [pod] = [
            pod for pod in pods() if one["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        ]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports


def test_the_commands_take_their_arguments() -> None:
    for pod in pods():
        for container in pod["spec"]["containers"]:
            program, command = container["command"]
            assert program == "devicekit"
            options = parse([command, *container["args"]]).options
            [port] = container["ports"]
            assert port["containerPort"] == options.port
            assert options.host == "0.0.0.0", "loopback would be reached by nobody"
            assert options.admin_api_key_file, "and everybody could steer"
            mounts = {one["mountPath"] for one in container["volumeMounts"]}
            named = [one.partition("=")[2] for one in container["args"] if "=/" in one]
            assert all(any(path.startswith(mount) for mount in mounts) for path in named)
            volumes = {one["name"] for one in pod["spec"]["volumes"]}
            assert {one["name"] for one in container["volumeMounts"]} == volumes


def test_probes_ask_for_pages_that_ask_for_no_key() -> None:
    known = {
        "serve": {one.path for one in ENDPOINTS if one.access.value == "open"},
        "fleet": {"/health", "/ready"},
    }
    for pod in pods():
        for container in pod["spec"]["containers"]:
            probes = [container[name] for name in container if name.endswith("Probe")]
            assert len(probes) >= 2
            for probe in probes:
                assert probe["httpGet"]["path"] in known[container["command"][1]]
                assert probe["httpGet"]["port"] in {port["name"] for port in container["ports"]}


def test_the_fleet_finds_engines_that_are_not_ready_and_there_is_one() -> None:
    [args] = [
        container["args"]
        for pod in pods()
        for container in pod["spec"]["containers"]
        if container["command"][1] == "fleet"
    ]
    [name] = [one.removeprefix("--dns=").partition(":")[0] for one in args if one.startswith("--dns=")]
    [service] = [one for one in of_kind("Service") if one["metadata"]["name"] == name]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    [steering] = [one for one in of_kind("Deployment") if one["metadata"]["name"] == "fleet"]
    assert (steering["spec"]["replicas"], steering["spec"]["strategy"]["type"]) == (1, "Recreate")


def test_an_engine_has_time_to_end_what_it_began() -> None:
    [engine] = [one["spec"] for one in pods() if one["metadata"]["labels"] == {"app": "engine"}]
    [container] = engine["containers"]
    drain = parse(["serve", *container["args"]]).options.drain_seconds
    waits = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert waits + drain < engine["terminationGracePeriodSeconds"]
