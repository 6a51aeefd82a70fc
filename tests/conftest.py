"""Fixtures of several test files: commands as a user calls them, and small weights."""

import os

# Before torch is imported: several test processes with threads for all cores each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import settings

from vswin_extract.cli import vswin
from vswin_extract.cli.extract import extract
from vswin_extract.feeding.frame_memory import FrameMemory, GrantedSlots
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.video.geometry import Geometry
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.recipe import Recipe

REQUIRE_GPU = os.environ.get("VSWIN_REQUIRE_GPU") == "1"
for variable in [name for name in os.environ if name.startswith(("SLURM_", "VSWIN_"))]:
    del os.environ[variable]  # of a job that runs the tests, which would be shards of it; and options of the user's
os.environ["VSWIN_OFFLINE"] = "1"  # a test that names published weights must not get them from the network

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts the tests with it ignored

settings.register_profile("vswin", deadline=None, derandomize=True)  # the same on a busy machine, and each time
settings.load_profile("vswin")

Run = Callable[..., "Done"]

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def needs_a_gpu(request: pytest.FixtureRequest) -> None:
    """Skip a test of the marker `gpu` where there is no GPU, or fail it where one is required."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        reason = "PyTorch sees no CUDA device here"
        pytest.fail(reason) if REQUIRE_GPU else pytest.skip(reason)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn nano weights with three classes, whose recipe makes clips of 8 frames of 32 x 32: quick to compute."""
    network = VideoSwin(VARIANTS["nano"], 3)
    network.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # larger than a training would begin with, so that features differ
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    recipe = Recipe(size=32, resize=32, clip_len=8, frame_interval=2)
    save_checkpoint(path, network.state_dict(), VARIANTS["nano"], recipe, ["one", "two", "three"])
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty weights cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """The environment of commands: no terminal, no settings of the user."""
    return {**os.environ, "VSWIN_WEIGHTS_DIR": str(cache), "COLUMNS": "100"}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def shell(environment: dict[str, str]) -> Run:
    """`shell("vswin", "inspect", path)`: a console script in a process of its own, as a shell would start it."""

    def call(command: str, *arguments: object) -> Done:
        done = subprocess.run(
            [script(command), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def run(environment: dict[str, str]) -> Run:
    """The same in this process, which saves the time of importing torch."""

    def call(command: str, *arguments: object, input: str | None = None, cwd: Path | None = None) -> Done:
        entry = {"vswin": vswin, "vswin-extract": extract}[command]
        with contextlib.chdir(cwd or Path.cwd()):
            done = CliRunner().invoke(
                entry, list(map(str, arguments)), input=input, env=environment, catch_exceptions=False
            )
        return Done(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="module")
def options(small_weights: Path) -> list[str]:
    return ["--weights", str(small_weights), "--stage", "4", "--stride", "6"]


@pytest.fixture(scope="module")
def single(run: Run, videos: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a single run over the `videos` of a test module. One of them is no video."""
    out = tmp_path_factory.mktemp("single") / "out.h5"
    assert run("vswin-extract", videos, out, *options).returncode == 3
    return out


@pytest.fixture(scope="module")
def no_proxy() -> Iterator[None]:
    """Servers are on this machine, whatever proxy is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def script(name: str) -> str:
    """Return the path of an installed console script."""
    return str(Path(sys.executable).with_name(name))


def granted_slots(slots: int = 1000, frame_bytes: int = 64 * 64 * 3) -> tuple[FrameMemory, GrantedSlots]:
    """Return a memory for frames, and a child's side of it that was granted all slots."""
    memory = FrameMemory(slots, frame_bytes)
    granted = GrantedSlots(memory.file, memory.slots, memory.slot_bytes)
    granted.add(range(slots))
    return memory, granted


def start_decoder(decoder: str = "pyav", timeout: float = 20.0, geometry: Geometry | None = None) -> DecoderProcess:
    """Return a decoder process with memory for clips that a test keeps: 2,000 frames, by default of 64 x 64."""
    return DecoderProcess(decoder, timeout, FrameMemory(2000, math.prod((geometry or Geometry(64, 64)).shape)))


def read_video(process: DecoderProcess, task: Task) -> tuple[list[DecodedClip], VideoEnd]:
    """Decode one video. Return its clips and its end."""
    process.submit(task)
    clips: list[DecodedClip] = []
    while True:
        arrived = process.read()
        if isinstance(arrived, VideoEnd):
            return clips, arrived
        clips.append(arrived)
