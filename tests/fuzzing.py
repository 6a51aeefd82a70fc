"""Every command that reads an output, on many hostile ones. Each command runs in a process of its own, within limits.

    python tests/fuzzing.py structure --count 500 --seed 1             500 files, changed by structure
    python tests/fuzzing.py bytes --count 500 --seed 1                 500 files, changed by bytes
    python tests/fuzzing.py structure --seed 1 --only 17 --keep DIR    number 17 of them, which stays in DIR

Prints a line of JSON for each finding, and one with counts at the end. Processes are forks of this one, which has
imported everything: a thousand files take minutes.
"""

import argparse
import contextlib
import gc
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # another one takes a gigabyte of addresses at once

import numpy as np
from hostile_outputs import SECRET_FLOAT, Mutant, make_bases, mutate
from hostile_structure import TOKEN

from vswin_extract.cli import vswin
from vswin_extract.errors import VswinError
from vswin_extract.store.shards import LINKED_ELSEWHERE

SECONDS = 10
"""A command that takes longer hangs."""
MEMORY = 1 << 30
"""Bytes that a command may need, beside those of this process."""
FILE_SIZE = 1 << 28
"""Bytes of a file that a command may write."""
MOST_HANGS = 3
"""Commands on one file that hang, after which the others are left out."""
TRACEBACK = 99
"""The exit code here of an exception that a command does not expect."""
CODES = {"check": {0, 2, 4}, "merge": {0, 2, 3}, "vswin-extract": {0, 2, 3}}
"""Exit codes of commands; of others 0 and 2."""
FORMATS = ("actionformer", "opentad", "moment-detr", "tvr", "clip-retrieval", "npy", "webdataset", "parquet", "summary")
SECRETS = (TOKEN.encode(), np.float32(SECRET_FLOAT).tobytes() * 2, str(SECRET_FLOAT).encode())
CONTROL = re.compile("[^\n\t\x20-\x7e\xa0-\U0010ffff]")
"""Characters that a terminal may obey."""


@dataclass(frozen=True)
class Finding:
    """Something that should not happen: `what` on `command`, with the file `number`."""

    number: int
    what: str
    detail: str
    command: list[str]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `code`: negative for a signal. `grown`: bytes of memory beside those of this process."""

    code: int
    stdout: bytes
    stderr: bytes
    grown: int


@dataclass
class Summary:
    """`files` were tried with `runs` of commands. `unchanged`: files that could not be changed. `accepted`: files that
    `check` found nothing wrong with. `codes`: how often each exit code came; `found`: each kind of finding."""

    files: int = 0
    runs: int = 0
    accepted: int = 0
    unchanged: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)


How = Literal["quick", "all", "torch"]
"""Which commands: a few on each file that import little; all that read; or those that need torch, which makes forks
slow."""


def fuzz(
    kind: str, seed: int, numbers: Sequence[int], folder: Path, how: How = "all", apart: bool = False
) -> Iterator[Finding | Summary]:
    """Try files of a kind; yield what is found, and the summary last. `apart`: each command in a process of its own;
    else all commands on a file in one, as long as it lives."""
    bases, case = folder / "bases", folder / "case"
    make_bases(bases)
    os.environ["FUZZ_TOKEN"] = TOKEN
    if how != "quick":
        prepare(folder, how)
    gc.collect()
    gc.freeze()
    summary = Summary()
    if how == "quick":
        for found in try_together(kind, seed, list(numbers), folder, summary):
            count(summary.found, found.what)
            yield found
        numbers = ()
    for number in numbers:
        one = kind if kind != "both" else "bytes" if number % 3 == 0 else "structure"
        mutant = make_in_fork(bases, case, one, f"{seed}/{one}/{number}")
        wanted = commands(mutant, folder, random.Random(f"{seed}/{number}"), how, number)
        summary.files += 1
        summary.unchanged += len(mutant.texts) < 2
        for found in try_file(mutant, number, wanted, folder, 1 if apart else len(wanted), summary):
            count(summary.found, found.what)
            yield found
    yield summary


def count(numbers: dict[str, int], what: str) -> None:
    numbers[what] = numbers.get(what, 0) + 1


def try_file(
    mutant: Mutant, number: int, wanted: list[list[str]], folder: Path, together: int, summary: Summary
) -> Iterator[Finding]:
    """Run commands on a file, so many in one process."""
    case = folder / "case"
    before, hangs, suspects = listing(folder), 0, list[list[str]]()
    while wanted and hangs < MOST_HANGS:
        outcomes = run(wanted[:together], mutant.path, case)
        tried, wanted = wanted[: len(outcomes)], wanted[len(outcomes) :]
        for found in weigh(number, tried, outcomes, mutant, case / "done", summary):
            hangs += found.what == "hang"
            if found.what == "memory":
                suspects.append(found.command)
            else:
                yield found
        after = listing(folder)
        changed = sorted({name for name, _ in before.items() ^ after.items()})
        changed = [name for name in changed if not name.endswith(LINKED_ELSEWHERE)]  # merge --link leaves it
        if any("--overwrite" in command for command in tried):
            changed = [name for name in changed if not name.startswith("case/in/out.h5")]
        if changed:
            names = [command[0] for command in tried]
            yield Finding(number, "written outside", ", ".join(changed), names, mutant.texts)
        before = after
    for command in suspects:  # HDF5 asks for as much memory as a damaged file says, and does not use it
        (outcome,) = run([command], mutant.path, case, 4 * MEMORY)
        for what, detail in judge(command, outcome, mutant, case / "done" / "0"):
            if what != "memory" or outcome.grown > MEMORY or outcome.code not in (0, 2, 4):
                yield Finding(number, what, f"{detail}, {outcome.grown >> 20} MB", command, mutant.texts)


def try_together(kind: str, seed: int, left: list[int], folder: Path, summary: Summary) -> Iterator[Finding]:
    """Make files and run commands on them, all in one fork, as long as it lives: a fork takes longer than a command."""

    def wanted(number: int) -> list[list[str]]:
        mutant = Mutant(folder / f"case{number}" / "in" / "out.h5", "plain", (), "")
        return commands(mutant, folder, random.Random(f"{seed}/{number}"), "quick", number)

    before = listing(folder)
    while left:
        pid = os.fork()
        if not pid:
            try:
                for number in left:
                    case = folder / f"case{number}"
                    signal.setitimer(signal.ITIMER_REAL, SECONDS)
                    one = kind if kind != "both" else "bytes" if number % 3 == 0 else "structure"
                    made = mutate(folder / "bases", case / "in", one, random.Random(f"{seed}/{one}/{number}"), 1)
                    (case / "mutant.json").write_text(json.dumps([made.base, made.texts, made.outside]))
                    call_all(wanted(number), made.path, case / "done", MEMORY)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(TRACEBACK)
        _, status = os.waitpid(pid, 0)
        while left:
            number, case = left[0], folder / f"case{left[0]}"
            if not (case / "mutant.json").exists():
                break  # the process ended before; another one goes on
            del left[0]
            assert (case / "done" / "0" / ".stdout").exists(), f"no command began on file {number}"
            base, texts, outside = json.loads((case / "mutant.json").read_text())
            mutant = Mutant(case / "in" / "out.h5", base, tuple(texts), outside)
            outcomes = read_outcomes(len(wanted(number)), case / "done", os.waitstatus_to_exitcode(status), 0)
            summary.files += 1
            yield from weigh(number, wanted(number), outcomes, mutant, case / "done", summary)
    changed = [
        name for name, _ in before.items() ^ listing(folder).items() if not re.match(r"case\d+/(in|done|mut)", name)
    ]
    if changed:
        yield Finding(-1, "written outside", ", ".join(changed), [], ())


def weigh(
    number: int, tried: list[list[str]], outcomes: list[Outcome], mutant: Mutant, done: Path, summary: Summary
) -> Iterator[Finding]:
    """Count and judge how commands on a file ended."""
    for place, (command, outcome) in enumerate(zip(tried, outcomes, strict=False)):
        summary.runs += 1
        count(summary.codes, f"{command[0]} {outcome.code}")
        summary.accepted += command[0] == "check" and outcome.code == 0
        for what, detail in judge(command, outcome, mutant, done / str(place)):
            yield Finding(number, what, detail, command, mutant.texts)


def prepare(folder: Path, how: How) -> None:
    """Import what commands import before processes are forked, by using the commands once on a sound output."""
    file, done = folder / "bases" / "rich" / "out.h5", folder / "case"
    done.mkdir()
    mutant = Mutant(file, "rich", (), "")
    streams = sys.stdout, sys.stderr
    try:
        sys.stdout = sys.stderr = stream(os.open(os.devnull, os.O_WRONLY))
        if how == "torch":
            make_inputs(folder)
        else:
            for command in commands(mutant, folder, random.Random(0), "all", 0):
                call([word.replace(DONE, os.fspath(done)) for word in command], file)
    finally:
        sys.stdout.close()
        sys.stdout, sys.stderr = streams


def stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", errors="backslashreplace", closefd=False)


def make_inputs(folder: Path) -> None:
    """Make a video and weights to extract it with, and import torch."""
    import numbered
    import torch

    from vswin_extract.network.swin3d import VideoSwin
    from vswin_extract.network.variants import VARIANTS
    from vswin_extract.weights.checkpoints import save_checkpoint
    from vswin_extract.weights.recipe import Recipe

    torch.set_num_threads(1)
    numbered.write(folder / "video.mp4", 20)
    network = VideoSwin(VARIANTS["nano"], 3)
    network.init_weights(torch.Generator().manual_seed(0))
    recipe = Recipe(size=32, resize=32, clip_len=8, frame_interval=2)
    names = ["one", "two", "three"]
    save_checkpoint(folder / "w.safetensors", network.state_dict(), VARIANTS["nano"], recipe, names)


def make_in_fork(bases: Path, case: Path, kind: str, seed: str) -> Mutant:
    """Change a base in a process of its own, since HDF5 may not survive what is done to its files. If it does not, only
    the first change is made."""
    for most in (3, 1, 0):
        shutil.rmtree(case, ignore_errors=True)
        (case / "in").mkdir(parents=True)
        pid = os.fork()
        if not pid:
            try:
                limit("")
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                mutant = mutate(bases, case / "in", kind, random.Random(seed), most)
                facts = {"base": mutant.base, "texts": mutant.texts, "outside": mutant.outside}
                (case / "mutant.json").write_text(json.dumps(facts))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(TRACEBACK)
        _, status = os.waitpid(pid, 0)
        if not status:
            break
    found = json.loads((case / "mutant.json").read_text())
    return Mutant(case / "in" / "out.h5", found["base"], tuple(found["texts"]), found["outside"])


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files of a folder, but for those that commands may write."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) != folder / "case" / "done"]
        for name in files:
            state = os.lstat(os.path.join(place, name))
            found[os.path.relpath(os.path.join(place, name), folder)] = (state.st_size, state.st_mtime_ns)
    return found


# Commands

ID = "{id}"
"""In a command: the first id of the file, if it can be read."""
DONE = "{done}"
"""In a command: the directory that it may write into."""


def commands(mutant: Mutant, folder: Path, chance: random.Random, how: How, number: int) -> list[list[str]]:
    """Return the commands for a file. The first word is a command of `vswin`, `vswin-extract`, or a name of CALLS."""
    file, good = os.fspath(mutant.path), folder / "bases" / mutant.base / "out.h5"
    stage = chance.choice(["embedding", "embedding", "embedding", "4", "logits"])
    pool = chance.choice(["all", "all", "space", "none"])
    more = chance.choice([[], [], ["--resize-length", "5"], ["--l2"], ["--stem"]])
    export = [["export", name, file, f"{DONE}/{name}", "--stage", stage, "--pool", pool, *more] for name in FORMATS]
    chance.shuffle(export)
    layout = chance.choice([["--layout", "sharded"], ["--link"]])
    cheap = [
        ["inspect", file],
        ["inspect", "--json", file],
        ["inspect", "--all", file],
        ["search", file, ID, "--json"],
        ["search", file, "v/0.mp4@1.0"],
        ["search", "--duplicates", file],
        ["search", file, ID, "--html", f"{DONE}/search.html"],
        ["merge", "-o", f"{DONE}/m.h5", file],
        ["merge", "-o", f"{DONE}/p.h5", *chance.sample([file, os.fspath(good)], 2), "--on-duplicate", "first"],
        ["merge", "-o", f"{DONE}/l.h5", file, *layout],
        ["merge", file, os.fspath(good)],
        ["completion", file],
    ]
    if how == "quick":
        small = [each for each in export if each[1] in ("npy", "webdataset", "tvr", "opentad")]
        return [chance.choice([["check", file], *cheap, small[0]])] if number % 2 else [["check", file]]
    if how == "torch":
        video = os.fspath(folder / "video.mp4")
        rare = [["--shard", "0/2"], ["--overwrite"]][number % 8 // 4 : number % 8 // 4 + 1] if number % 4 == 0 else []
        return [["dataset", file], *(["vswin-extract", video, file, *more] for more in ([], *rare))]
    return [
        ["check", file],
        *cheap,
        ["report", file, "-o", f"{DONE}/report.html"],
        ["plot", file, ID, "-o", f"{DONE}/plot.png"],
        *export[:2],
        ["api", file],
    ]


def run(batch: list[list[str]], file: Path, case: Path, memory: int = MEMORY) -> list[Outcome]:
    """Run commands in a fork of this process, one after another. Return how they ended: all, or those up to the one
    that the process did not survive. `memory`: bytes that it may ask for."""
    done = case / "done"
    shutil.rmtree(done, ignore_errors=True)
    for place in range(len(batch)):
        (done / str(place)).mkdir(parents=True)
    reading, writing = os.pipe()  # a standard input that never ends and has nothing
    own = int(re.findall(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            os.dup2(reading, 0)
            os.chdir(case)
            call_all(batch, file, done, memory)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(TRACEBACK)
    _, status, usage = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # decoders of a command that was killed
    os.close(reading)
    os.close(writing)
    return read_outcomes(len(batch), done, os.waitstatus_to_exitcode(status), (usage.ru_maxrss << 10) - own)


def read_outcomes(count: int, done: Path, status: int, grown: int) -> list[Outcome]:
    """Return how the commands of a process ended, up to the one with which it ended."""
    outcomes = []
    for place in range(count):
        stdout, stderr, code = (done / str(place) / f".{name}" for name in ("stdout", "stderr", "code"))
        last = not code.exists()
        ended = status if last else int(code.read_text())
        used = grown if last or place == count - 1 else 0
        outcomes.append(Outcome(ended, stdout.read_bytes(), stderr.read_bytes(), used))
        if last:
            break
    return outcomes


def call_all(batch: list[list[str]], file: Path, done: Path, memory: int) -> None:
    """Run commands in this process, within limits. What each prints and its exit code go to done/NUMBER."""
    limit(batch[0][0], memory)
    sys.stdout, sys.stderr = stream(1), stream(2)
    for place, command in enumerate(batch):
        folder = done / str(place)
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in ((1, "stdout"), (2, "stderr")):
            opened = os.open(folder / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        signal.setitimer(signal.ITIMER_REAL, SECONDS * (6 if command[0] == "vswin-extract" else 1))
        code = call([word.replace(DONE, os.fspath(folder)) for word in command], file)
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / ".code").write_text(str(code))


def limit(command: str, memory: int = MEMORY) -> None:
    """Limit this process: by its memory, its time, its files. A signal ends it."""
    for name in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(name, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    if command not in ("dataset", "vswin-extract"):  # torch takes gigabytes of addresses
        used = int(re.findall(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + memory, resource.RLIM_INFINITY))


def call(command: list[str], file: Path) -> int:
    """Run a command in this process. Return its exit code."""
    name, *arguments = [first_id(file) if word == ID else word for word in command]
    try:
        if name in CALLS:
            CALLS[name](*arguments)
        elif name == "vswin-extract":
            from vswin_extract.cli.extract import extract

            weights = file.parent.parent.parent / "w.safetensors"
            extract.main([*arguments, "--weights", os.fspath(weights), "--device", "cpu", "--workers", "1"])
        else:
            vswin.main([name, *arguments], prog_name="vswin")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return TRACEBACK
    return 0


def first_id(file: Path) -> str:
    from vswin_extract.store.features import open_features

    try:
        with open_features(file) as features:
            return next(iter(features), "v/0.mp4") or "v/0.mp4"
    except Exception:  # the command will say so
        return "v/0.mp4"


def use_api(file: str) -> None:
    """Read everything by the Python interface. Errors of the package, and of values that cannot be read, are
    expected."""
    from vswin_extract.store.features import linked_files, open_features
    from vswin_extract.store.hdf5 import read_attributes

    for use in (linked_files, lambda path: read_attributes(Path(path))):
        try:
            use(file)
        except (VswinError, OSError) as error:
            print(type(error).__name__, str(error)[:200].encode("unicode_escape").decode())
    try:
        with open_features(file) as features:
            repr(features), features.info, features.failures, features.clips
            for video in [*features.values()][:100]:
                repr(video), video.info, video.times[:], video.frames[0], video.valid[-1:]
                for feature in features.names:
                    getattr(video, feature)[:], np.asarray(getattr(video, feature))
                video.at(float(video.times[0, 0]))
            pickle.loads(pickle.dumps(features)).close()
    except (VswinError, OSError, IndexError) as error:
        print(type(error).__name__, str(error)[:200].encode("unicode_escape").decode())


def complete(file: str) -> None:
    """Complete the id of a video, as a shell asks for it."""
    from vswin_extract.cli.complete import video_ids

    video_ids(SimpleNamespace(params={"file": file}), None, "")  # type: ignore[arg-type]


def use_dataset(file: str) -> None:
    """Read everything as PyTorch does."""
    from vswin_extract.loading.dataset import FeatureDataset

    for options in ({}, {"length": 3}, {"name": "stage4", "pool": "none", "length": 2, "fit": "pad"}):
        try:
            list(FeatureDataset(file, **options))
        except (VswinError, OSError) as error:
            print(type(error).__name__, str(error)[:200].encode("unicode_escape").decode())


CALLS: dict[str, Callable[[str], None]] = {"api": use_api, "completion": complete, "dataset": use_dataset}


# Judgement


def judge(command: list[str], outcome: Outcome, mutant: Mutant, done: Path) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with how a command ended: a word and a detail."""
    name, code = command[0], outcome.code
    errors = outcome.stderr.decode(errors="replace")
    last = errors.strip().splitlines()[-1][:300] if errors.strip() else ""
    if code in (-signal.SIGALRM, -signal.SIGXCPU):
        yield "hang", f"over {SECONDS} s"
    elif code < 0:
        yield "crash", signal.Signals(-code).name
    elif code == TRACEBACK or "Traceback (most" in errors:
        memory = isinstance_of_memory(errors)
        yield ("memory" if memory else "traceback"), f"{frames_of(errors)} {last}"
    elif re.search(r"out of memory|allocation failed|unable to allocate", errors):
        yield "memory", last
    elif re.search(r"File too large|No space", errors):
        yield "disk", last
    elif code not in CODES.get(name, {0, 2}):
        yield f"code {code}", last
    elif "Warning:" in errors:
        yield "warning", next(line for line in errors.splitlines() if "Warning:" in line)[-200:]
    elif code == 2 and len([line for line in errors.splitlines() if not line.startswith("note: ")]) != 1:
        yield "lines", errors[:300]
    if outcome.grown > MEMORY:
        yield "memory", f"{outcome.grown >> 20} MB"
    reads = name not in CALLS and "--overwrite" not in command
    if code in (0, 3) and reads and (mutant.outside == "all" or name == mutant.outside):
        yield "outside", "a file that points out of itself is read"
    if found := CONTROL.search(outcome.stdout.decode(errors="replace") + errors):
        yield "control", repr(found[0])
    if max(len(line) for line in [*errors.splitlines(), ""]) > 10_000:
        yield "long", f"{len(errors)} characters of errors"
    written = [each for each in done.rglob("[!.]*") if each.is_file() and not each.is_symlink()]
    texts = {"stdout": outcome.stdout, "stderr": outcome.stderr, **{each.name: each.read_bytes() for each in written}}
    for where, text in texts.items():
        if any(secret in text for secret in SECRETS):
            yield "leak", where


def isinstance_of_memory(errors: str) -> bool:
    return bool(re.search(r"MemoryError|[Uu]nable to allocate|allocation failed", errors.strip().splitlines()[-1]))


def frames_of(errors: str) -> str:
    """Return the last places of a traceback within the package."""
    found = re.findall(r'vswin_extract/([\w/]+\.py)", line (\d+), in (\w+)', errors)
    return " < ".join(f"{file}:{line} {name}" for file, line, name in found[-1:-3:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["structure", "bytes", "both"])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--how", choices=["quick", "all", "torch"], default="all")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--apart", action="store_true", help="each command in a process of its own")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    given = parser.parse_args()
    globals()["SECONDS"] = given.seconds
    numbers = range(given.first, given.first + given.count) if given.only is None else [given.only]
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder)
        place.mkdir(exist_ok=True)
        for found in fuzz(given.kind, given.seed, numbers, place, given.how, given.apart):
            print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
