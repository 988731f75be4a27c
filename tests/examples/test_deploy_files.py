"""The files that bring clusters up: KubeRay's by its schemas, Ray's by its launcher's, and what all must agree on."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples/deploy"
KUBERAY = {"kuberay-job.yaml": "ray.io_rayjobs.yaml", "kuberay-cluster.yaml": "ray.io_rayclusters.yaml"}
LAUNCHED = ("aws.yaml", "gcp.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def unknown(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Names that a schema does not know: Kubernetes drops them without a word."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown(schema.get("items", {}), item, f"{path}[{index}]")
    elif isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from unknown(schema["properties"][name], inner, f"{path}.{name}")
            else:
                yield f"{path}.{name}"


@pytest.mark.parametrize("name", KUBERAY)
def test_a_file_for_kuberay_is_as_its_schema_wants(name: str) -> None:
    data = Path(os.environ.get("BATCHLOOM_REAL_DATA", ROOT.parent / "shared/data"))
    path = data / "kuberay" / KUBERAY[name]
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not at {path}")
    versions = {
        one["name"]: one["schema"]["openAPIV3Schema"] for one in yaml.safe_load(path.read_text())["spec"]["versions"]
    }
    written = read(name)
    schema = versions[written["apiVersion"].partition("/")[2]]
    problems = [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(written)
    ]
    assert problems == []
    assert list(unknown({**schema, "properties": {**schema["properties"], "metadata": {}}}, written)) == []
    written["spec"]["enableInTreeAutoscalling"] = True  # what this test is to find
    assert list(unknown(schema, written)) == [".spec.enableInTreeAutoscalling"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_file_for_rays_launcher_is_as_it_wants(name: str) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(name), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**read(name), "idle_timeout": 5}, schema)


@pytest.mark.parametrize("name", LAUNCHED)
def test_launched_clusters_begin_without_workers_and_drive_from_a_head_that_computes_nothing(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {kind: node for kind, node in types.items() if kind != config["head_node_type"]}
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize("name", KUBERAY)
def test_clusters_on_kubernetes_scale_gpus_from_none(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, cpu = cluster["workerGroupSpecs"]
    assert (gpu["groupName"], gpu["replicas"], gpu["minReplicas"]) == ("gpu", 0, 0)
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cpu["minReplicas"] >= 1


def test_the_cluster_that_stays_is_the_one_of_the_job_without_its_job_file() -> None:
    job, stays = cluster_of("kuberay-job.yaml"), cluster_of("kuberay-cluster.yaml")
    pod = job["headGroupSpec"]["template"]["spec"]
    assert pod.pop("volumes")[0]["configMap"] == {"name": read("kuberay-job.yaml")["metadata"]["name"]}
    assert pod["containers"][0].pop("volumeMounts")[0]["mountPath"] == "/jobs"
    assert job == stays
    assert read("kuberay-job.yaml")["spec"]["entrypoint"] == "batchloom run /jobs/job.yaml"


def test_files_agree_on_the_version_of_ray_that_is_tested() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    named = {re.search(r"^ARG RAY=(.+)$", dockerfile, re.MULTILINE)[1]}
    named |= {cluster_of(name)["rayVersion"] for name in KUBERAY}
    assert named == {version("ray")}


def test_the_image_installs_extras_that_there_are() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    extras = re.search(r"^ARG EXTRAS=(.+)$", dockerfile, re.MULTILINE)[1].split(",")
    known = {name for line in requires("batchloom") or [] for name in re.findall(r"extra == ['\"](\w+)['\"]", line)}
    assert set(extras) <= known
