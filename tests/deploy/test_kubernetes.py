"""The manifests: valid by the schemas that Kubernetes publishes, and of one mind with each other, with the image and
with the page. Their command lines are parsed by test_commands.py."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.commands import DEPLOY, PAGE

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
ALL = [document for path in FILES for document in yaml.safe_load_all(path.read_text())]
BY_NAME = {(d["kind"], d["metadata"]["name"]): d for d in ALL}
WORKLOADS = [d for d in ALL if d["kind"] in ("Deployment", "StatefulSet")]


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (one,) = pod(workload)["containers"]
    return one  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_schema_takes_it(path: Path, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_there_is_what_the_page_names() -> None:
    assert set(BY_NAME) == {
        *(("Deployment", "atoll-master"), ("Service", "atoll-master"), ("PersistentVolumeClaim", "atoll-master")),
        *(("StatefulSet", "atoll-peer"), ("Service", "atoll-peers"), ("PodDisruptionBudget", "atoll-peers")),
    }
    assert BY_NAME["Deployment", "atoll-master"]["spec"]["replicas"] == 1
    assert BY_NAME["Deployment", "atoll-master"]["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w["metadata"]["name"])
def test_selectors_volumes_and_ports_meet(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    inside, claims = container(workload), workload["spec"].get("volumeClaimTemplates", [])
    volumes = {v["name"] for v in pod(workload)["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in inside["volumeMounts"]} == volumes
    for volume in pod(workload)["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in BY_NAME
    services = [d for d in ALL if d["kind"] == "Service" and d["spec"]["selector"] == labels]
    assert len(services) == 1
    ports = {port["name"]: port["containerPort"] for port in inside["ports"]}
    assert {ports[port["targetPort"]] for port in services[0]["spec"]["ports"]} == set(ports.values())
    paths = [mount["mountPath"] for mount in inside["volumeMounts"]]
    files = [word.rpartition("=")[2] for word in inside["command"] if re.search(r"(^|=)/", word)]
    assert files
    assert all(any(file.startswith(f"{path}/") for path in paths) for file in files)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w["metadata"]["name"])
def test_a_pod_may_do_nothing_it_need_not(workload: dict[str, Any]) -> None:
    security = pod(workload)["securityContext"]
    (uid,) = re.findall(r"^USER (\d+):", (DEPLOY / "container" / "Containerfile").read_text(), re.MULTILINE)
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == security["fsGroup"] == int(uid)
    inside = container(workload)["securityContext"]
    assert inside["readOnlyRootFilesystem"]
    assert not inside["allowPrivilegeEscalation"]
    assert inside["capabilities"] == {"drop": ["ALL"]}
    assert container(workload)["resources"].keys() == {"requests", "limits"}
    assert pod(workload)["enableServiceLinks"] is False


def test_peers_find_the_master_and_tell_where_they_are() -> None:
    peers = BY_NAME["StatefulSet", "atoll-peer"]
    command, (port,) = container(peers)["command"], BY_NAME["Service", "atoll-master"]["spec"]["ports"]
    assert command[2] == f"atoll-master:{port['port']}"
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container(peers)["env"] if "valueFrom" in e}
    assert fields == {"POD_IP": "status.podIP", "POD_NAME": "metadata.name"}
    (own,) = container(peers)["ports"]
    assert f"--advertise=$(POD_IP):{own['containerPort']}" in command
    assert peers["spec"]["serviceName"] == "atoll-peers"
    assert BY_NAME["Service", "atoll-peers"]["spec"]["clusterIP"] == "None"
    budget = BY_NAME["PodDisruptionBudget", "atoll-peers"]["spec"]
    assert budget["selector"] == peers["spec"]["selector"]


def test_the_page_makes_the_secret_and_the_settings_that_pods_mount() -> None:
    made = set(re.findall(r"kubectl create (?:secret generic|configmap) (\S+) --from-file=(\S+?)=", PAGE.read_text()))
    volumes = [v for workload in WORKLOADS for v in pod(workload)["volumes"]]
    secrets = {v["secret"]["secretName"] for v in volumes if "secret" in v}
    settings = {v["configMap"]["name"] for v in volumes if "configMap" in v}
    assert made == {*((name, "token") for name in secrets), *((name, "run.toml") for name in settings)}
