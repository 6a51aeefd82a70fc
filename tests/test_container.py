"""The Dockerfile and the job for KubeRay agree with this package. No linter can check that."""

import json
import re
import shlex
import tomllib
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from conftest import ROOT

from vswin_extract.cli.extract import extract
from vswin_extract.job.job import Job
from vswin_extract.video.videos import Video
from vswin_extract.weights.registry import find_published

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    if line.strip()
]


def instructions(name: str) -> list[str]:
    return [rest for kind, rest in INSTRUCTIONS if kind == name]


def test_the_image_copies_exactly_the_files_of_a_wheel() -> None:
    sources = {source for rest in instructions("COPY") for source in rest.split()[:-1]}
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == included
    assert all((ROOT / source).exists() for source in sources)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"]}
    assert sources == needed | wheel["force-include"].keys()


def test_names_in_the_dockerfile_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "vswin_extract").rglob("*.py"))
    environment = set(re.findall(r"(\w+)=", " ".join(instructions("ENV"))))
    for name in environment - {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "TRITON_CACHE_DIR"}:
        assert f'"{name}"' in code, name
    arguments = dict(argument.split("=", 1) for argument in instructions("ARG"))
    assert arguments.keys() == {"EXTRAS", "WEIGHTS"}
    for name in arguments:
        assert f"${{{name}}}" in " ".join(instructions("RUN")), name
    extras = set(arguments["EXTRAS"].split(","))
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()
    (entry,) = (json.loads(rest) for rest in instructions("ENTRYPOINT"))
    assert entry[0] in PROJECT["project"]["scripts"]


def test_examples_of_the_dockerfile_run() -> None:
    build, run = re.findall(r"^#   docker (.*)$", DOCKERFILE, re.MULTILINE)
    for name in re.findall(r'WEIGHTS="(.*?)"', build)[0].split():
        find_published(name)
    parse(shlex.split(run.partition(" vswin-extract ")[2]))


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse options as the command does, and make a job of them."""
    given: dict[str, Any] = extract.make_context("vswin-extract", list(arguments)).params
    chosen = {name: given[name] for name in ("weights", "engine", "device", "pool", "actors", "ray_address")}
    Job((Video("a", ROOT),), ROOT / "out.h5", stages=given["stages"], **chosen)
    return given


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((ROOT / "examples" / "ray" / "rayjob.yaml").read_text())


def test_the_job_for_kuberay_runs_our_command_on_the_shared_volume(job: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert command in PROJECT["project"]["scripts"]
    given = parse(arguments)
    assert (given["engine"], given["device"]) == ("ray", "cuda")
    find_published(given["weights"])
    cluster = job["spec"]["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods = [each["template"]["spec"] for each in (head, group)]
    for pod in pods:
        assert pod["securityContext"] == pods[0]["securityContext"]
        (container,) = pod["containers"]
        assert container["image"].endswith(f"/vswin-extract:{PROJECT['project']['version']}")
        assert container["image"] == pods[0]["containers"][0]["image"]
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount["name"] == volume["name"]
        assert volume["persistentVolumeClaim"]["claimName"]
        for path in (*given["inputs"], given["output"], given["storage"]):
            assert PurePosixPath(path).is_relative_to(mount["mountPath"]), path
    assert head["rayStartParams"]["num-cpus"] == "0"
    worker = pods[1]["containers"][0]["resources"]
    assert int(worker["limits"]["nvidia.com/gpu"]) >= 1
    assert worker["limits"] == worker["requests"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_runs_as_the_user_of_the_image(job: Any) -> None:
    user = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert [str(user)] == instructions("USER")
    assert f"useradd --create-home --uid {user} " in DOCKERFILE
