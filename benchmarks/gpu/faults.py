"""What must go well when something goes wrong: memory, weights, processes, settings; and whether two runs agree."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.gpu.commands import command, distance, features, require, run
from benchmarks.gpu.feed import has
from benchmarks.gpu.peer import peer_model
from benchmarks.gpu.proof import Section
from vswin_extract.network.variants import VARIANTS

TABLE = "checks"
FILL = """
import torch
free, _ = torch.cuda.mem_get_info()
kept = torch.empty(free - {left}, dtype=torch.uint8, device="cuda")
"""
"""Takes the memory of the card by a plain allocation, but for `left` bytes."""
LEFT = 2_500_000_000
WATCH = """
import vswin_extract.worker.compute as compute
shrink = compute.Computer.__init__
def watched(self, forward, device, batch_size, on_shrink=lambda size: None):
    def say(size):
        print("SHRUNK", size, flush=True)
        on_shrink(size)
    shrink(self, forward, device, batch_size, say)
compute.Computer.__init__ = watched
"""
"""Prints the new batch size when memory runs out."""


class Bench:
    """Videos, weights and the output of a usual run, to compare with."""

    def __init__(self, section: Section) -> None:
        from benchmarks.videos import draw

        self.section = section
        self.folder = section.folder / "faults"
        self.videos = self.folder / "videos"
        self.videos.mkdir(parents=True)
        first = draw(self.videos / "0.mp4", 640, 64, 48)
        for number in range(1, 4):
            shutil.copy(first, self.videos / f"{number}.mp4")
        self.options: list[object] = ["--device", section.device, "--stride", 16, "--precision", "bf16"]
        if section.small:
            self.options += ["--size", 32, "--resize", 32, "--precision", "fp32"]
        self.usual = self.output("usual")
        require(run([self.videos, self.usual, *self.options]))

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.h5"

    def same(self, name: str) -> str:
        """Return the problem if an output has other bytes of features than the usual one."""
        if features(self.output(name)) == features(self.usual):
            return ""
        return f"features are off by {distance(self.output(name), self.usual):.1e}"


def faults(section: Section) -> None:
    if not has("av"):
        section.skip("all faults", "PyAV is missing, and videos are drawn and decoded by it")
        return
    bench = Bench(section)
    for check in (
        two_runs,
        out_of_memory,
        nan_weights,
        killed_decoder,
        killed_run,
        named_twice,
        two_at_once,
        other_precision,
    ):
        what = check.__name__.replace("_", " ")
        if section.allows(what, 12):
            with section.guarded(what):
                check(bench)


def two_runs(bench: Bench) -> None:
    require(run([bench.videos, bench.output("again"), *bench.options]))
    bench.section.check(TABLE, "two runs give identical bytes of features", bench.same("again"), "identical")


def out_of_memory(bench: Bench) -> None:
    """T at a batch that the memory that is left cannot hold."""
    section = bench.section
    if section.device.type != "cuda":
        section.skip("a real out-of-memory", "a CPU's memory is not filled")
        return
    weights = bench.folder / "t.pth"
    torch.save(peer_model(VARIANTS["t"])[0].state_dict(), weights)
    options = [*bench.options, "--weights", weights]
    require(run([bench.videos, bench.output("roomy"), *options]))
    done = run([bench.videos, bench.output("full"), *options, "--batch-size", 64], WATCH + FILL.format(left=LEFT))
    require(done)
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("SHRUNK")]
    apart = distance(bench.output("full"), bench.output("roomy"))
    problem = "" if sizes else f"batches of 64 fitted into {LEFT / 1e9} GB, so nothing was proved"
    section.check(TABLE, "a real out-of-memory halves the batch, and the run goes on", problem, f"{sizes}")
    problem = "" if apart < 1e-2 else f"off by {apart:.1e}"
    section.check(TABLE, "after an out-of-memory features are within 1e-2 of the usual", problem, f"off by {apart:.1e}")


def nan_weights(bench: Bench) -> None:
    weights = bench.folder / "nan.pth"
    state = peer_model(VARIANTS["t"])[0].state_dict()
    state["norm.weight"][0] = float("nan")
    torch.save(state, weights)
    done = run([bench.videos, bench.output("nan"), *bench.options, "--weights", weights])
    problem = "" if done.returncode and "NaN" in done.stderr else f"exit {done.returncode}: {done.stderr[-200:]}"
    bench.section.check(TABLE, "weights with NaN are refused", problem, f"exit {done.returncode}")


def killed_decoder(bench: Bench) -> None:
    """A child of the run is killed; the run records the video, or starts another decoder, and ends."""
    out = bench.output("decoder")
    process = start(bench, out)
    child = find_decoder(process)
    if child is not None:
        os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    problem = (
        ""
        if child is not None and process.returncode in (0, 3)
        else f"killed {child}, exit {process.returncode}: {errors[-200:]}"
    )
    bench.section.check(TABLE, "a run outlives a killed decoder", problem, f"exit {process.returncode}")


def killed_run(bench: Bench) -> None:
    """The process on the device is killed in the middle; the same command finishes the output."""
    out = bench.output("killed")
    begin_and_kill(bench, out)
    require(run([bench.videos, out, *bench.options]))
    problem, found = bench.same("killed"), "identical"
    if problem and bench.section.device.type == "cuda":  # a resumed run makes other batches
        apart = distance(out, bench.usual)
        problem, found = ("", f"off by {apart:.1e}") if apart < 1e-2 else (problem, "")
    bench.section.check(TABLE, "a run that was killed on the device is resumed", problem, found)


def start(bench: Bench, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command([bench.videos, out, *bench.options]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def begin_and_kill(bench: Bench, out: Path) -> None:
    """Begin a run, and kill its process once a decoder has opened a video."""
    process = start(bench, out)
    find_decoder(process)
    process.kill()
    process.communicate(timeout=60)


def find_decoder(process: subprocess.Popen[str]) -> int | None:
    """Wait until a decoder of a run has opened a video. Return its process id, or None if the run ended before."""
    while process.poll() is None:
        with contextlib.suppress(OSError):  # processes and files come and go meanwhile
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in map(int, listed):
                if any(os.readlink(each).endswith(".mp4") for each in Path(f"/proc/{child}/fd").iterdir()):
                    return child
        time.sleep(0.002)
    return None


def named_twice(bench: Bench) -> None:
    if bench.section.device.type != "cuda":
        bench.section.skip("a GPU named twice", "there is no GPU")
        return
    done = run([bench.videos, bench.output("twice"), "--device", "cuda:0,0"])
    problem = "" if done.returncode and "twice" in done.stderr else f"exit {done.returncode}: {done.stderr[-200:]}"
    bench.section.check(TABLE, "a GPU that is named twice is refused", problem, f"exit {done.returncode}")


def two_at_once(bench: Bench) -> None:
    names = ("one", "other")
    processes = [start(bench, bench.output(name)) for name in names]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        if process.returncode:
            raise RuntimeError(f"exit {process.returncode}: {errors[-600:]}")
    problem = " ".join(bench.same(name) for name in names).strip()
    bench.section.check(TABLE, "two runs at the same time on one device give identical features", problem, "identical")


def other_precision(bench: Bench) -> None:
    """An output that was begun in one precision is not finished in another."""
    out = bench.output("precision")
    begin_and_kill(bench, out)
    precision = "bf16" if bench.section.small else "fp32"
    done = run([bench.videos, out, *bench.options, "--precision", precision])
    problem = "" if done.returncode and "precision" in done.stderr else f"exit {done.returncode}: {done.stderr[-300:]}"
    bench.section.check(TABLE, "a resume in another precision is refused", problem, f"exit {done.returncode}")
