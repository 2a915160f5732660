"""The manifest for KubeRay, and the file for Ray's cluster launcher."""

import os
import re
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import ValidationError

from tests.helpers.kuberay import ConfigMap, Container, PodSpec, RayJob
from tests.helpers.shell import check_shell

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPT_MAP, JOB = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
CLUSTER = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
RAY = re.findall(r"ray\[default\]==([\d.]+)", (DEPLOY / "Dockerfile.cuda").read_text())


def ray_start_options() -> set[str]:
    from ray.scripts.scripts import start

    return {name.removeprefix("--") for option in start.params for name in option.opts}


def pods() -> list[PodSpec]:
    cluster = RayJob.model_validate(JOB).spec.ray_cluster_spec
    return [cluster.head_group_spec.template.spec, *(group.template.spec for group in cluster.worker_group_specs)]


def only(pod: PodSpec) -> Container:
    (container,) = pod.containers
    return container


# --- KubeRay --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "entryPoint"], "esplug"),
        (["spec", "backoffLimit"], "2"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"], 4),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"], []),
    ],
)
def test_the_schema_refuses_what_kuberay_refuses(path, value) -> None:
    wrong = deepcopy(JOB)
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        RayJob.model_validate(wrong)


def test_the_manifest_is_valid() -> None:
    job = RayJob.model_validate(JOB)
    assert [job.spec.ray_cluster_spec.ray_version] == RAY
    for group in job.spec.ray_cluster_spec.worker_group_specs:
        assert group.min_replicas == group.replicas == group.max_replicas  # esplug starts with the nodes that are there
        assert set(group.ray_start_params) <= ray_start_options()
    assert set(job.spec.ray_cluster_spec.head_group_spec.ray_start_params) <= ray_start_options()


def test_the_pods_have_what_they_mount_and_the_user_of_the_image() -> None:
    head, *workers = pods()
    uid = int(re.findall(r"^ARG UID=(\d+)$", (DEPLOY / "Dockerfile.cuda").read_text(), re.MULTILINE)[0])
    for pod in (head, *workers):
        assert {mount.name for mount in only(pod).volume_mounts} == {volume.name for volume in pod.volumes}
        assert all(sum(value is not None for _, value in volume) == 2 for volume in pod.volumes)
        assert (pod.security_context.run_as_user, pod.security_context.fs_group) == (uid, uid)
        assert only(pod).image == only(head).image
        assert "/dev/shm" in [mount.mount_path for mount in only(pod).volume_mounts]
        shared = [volume.name for volume in pod.volumes if volume.persistent_volume_claim]
        assert [mount.mount_path for mount in only(pod).volume_mounts if mount.name in shared] == ["/shared"]
    assert "nvidia.com/gpu" not in only(head).resources.limits
    assert all(only(pod).resources.limits["nvidia.com/gpu"] for pod in workers)


def test_the_command_is_that_of_the_config_map() -> None:
    scripts, job = ConfigMap.model_validate(SCRIPT_MAP), RayJob.model_validate(JOB)
    (volume,) = [volume for volume in pods()[0].volumes if volume.config_map]
    assert volume.config_map is not None
    assert volume.config_map.name == scripts.metadata.name
    (folder,) = [mount.mount_path for mount in only(pods()[0]).volume_mounts if mount.name == volume.name]
    (name,) = scripts.data
    assert job.spec.entrypoint == f"sh {folder}/{name}"
    check_shell(scripts.data[name], "sh")


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("status", [0, 1])
def test_the_script_starts_or_resumes_and_returns_the_status(tmp_path: Path, resumed: bool, status: int) -> None:
    (script,) = SCRIPT_MAP["data"].values()
    (run,) = re.findall(r"^run=(.*)$", script, re.MULTILINE)
    here = tmp_path / run.lstrip("/")
    if resumed:
        here.mkdir(parents=True)
        (here / "seeds.log").write_text("a header")
    esplug = tmp_path / "esplug"
    esplug.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {status}\n')
    esplug.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script.replace(run, str(here))],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    words = done.stdout.split()
    if resumed:
        assert words == ["train", "--resume", str(here)]
    else:
        folder, name = (words[words.index(flag) + 1] for flag in ("--output-directory", "--experiment-name"))
        assert Path(folder, name) == here
        assert "--ray-address" not in words  # the job's RAY_ADDRESS names the cluster


# --- Ray's cluster launcher -----------------------------------------------------------------------------


def test_ray_accepts_the_cluster() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(deepcopy(CLUSTER))
    validate_config(prepared)
    assert prepared["max_workers"] == len(CLUSTER["provider"]["worker_ips"]) == 3
    with pytest.raises(ValidationError, match="setup_command"):
        validate_config(prepared | {"setup_command": []})


def test_the_commands_of_the_cluster_are_real() -> None:
    starts = []
    for name in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in CLUSTER[name]:
            subprocess.run(["bash", "-n", "-c", command], check=True)
            starts += [shlex.split(part) for part in command.split("&&") if part.split()[:2] == ["ray", "start"]]
    assert len(starts) == 2
    for words in starts:
        assert {word.removeprefix("--").partition("=")[0] for word in words[2:]} <= ray_start_options()
    (install,) = [command for command in CLUSTER["setup_commands"] if "pip install" in command]
    found = [Requirement(word) for word in shlex.split(install)[2:] if not word.startswith("-")]
    assert [each.name for each in found] == ["esplug", "esplug-tasks-math", "ray"]
    assert found[0].extras == {"gpu"}
    assert [next(iter(found[2].specifier)).version] == RAY
