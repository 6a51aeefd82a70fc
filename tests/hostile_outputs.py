"""Outputs that somebody prepared: a small sound output, changed by structure or by bytes.

`make_bases` makes the sound outputs, and `mutate` changes one of them as a seed says. Changes of structure stand in
hostile_structure.py. Changes of bytes know nothing of HDF5, but prefer the places where it keeps what it needs.
"""

import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hostile_structure import CHANGES, TOKEN, Outside, Place

from vswin_extract.errors import first_line
from vswin_extract.journal.merge import merge
from vswin_extract.store import layouts
from vswin_extract.store.schema import Arrays, Compression, FileDescription, VideoRecord

SECRET_FLOAT = 1234567.0
"""In every row of the output that no other may show anything of."""
CLIPS = (3, 1, 4)
"""Clips of the videos of a base."""
BASES = ("plain", "gzip", "rich", "sharded", "linked")


@dataclass(frozen=True)
class Mutant:
    """A changed output. `path`: what commands are given. `base`: of which kind it was. `texts`: what was changed.
    `outside`: if it points to another file, which commands must not accept it: all, or check."""

    path: Path
    base: str
    texts: tuple[str, ...]
    outside: str


def make_bases(folder: Path) -> None:
    """Write a sound output of each kind to folder/KIND/out.h5, and secret.txt and other.h5, which are not theirs."""
    for name in BASES:
        (folder / name).mkdir(parents=True)
    (folder / "secret.txt").write_text(f"{TOKEN}\n" * 4096)
    _write(folder / "other.h5", ids=(f"{TOKEN}/0.mp4",), clips=(8,), value=SECRET_FLOAT)
    _write(folder / "plain" / "out.h5")
    _write(folder / "gzip" / "out.h5", compression="gzip", stages=True)
    _write(folder / "rich" / "out.h5", stages=True, logits=True)
    _write(folder / "sharded" / "out.h5", layout="sharded")
    parts = [folder / "linked" / f"{number}.h5" for number in range(2)]
    for number, part in enumerate(parts):
        _write(part, ids=(f"{'uv'[number]}/0.mp4",), clips=(3,), run=str(number))
    merge(folder / "linked" / "out.h5", parts, layout="linked")


def _write(
    path: Path,
    ids: tuple[str, ...] = ("v/0.mp4", "v/1.mp4", "w.mp4"),
    clips: tuple[int, ...] = CLIPS,
    value: float | None = None,
    compression: Compression = "none",
    stages: bool = False,
    logits: bool = False,
    layout: layouts.Layout = "single",
    run: str = "a",
) -> None:
    chance = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (16,)}
    shapes |= {"stage4": (2, 2, 2, 16)} if stages else {}
    shapes |= {"logits": (3,)} if logits else {}
    records = [
        VideoRecord(name, f"/nowhere/{name}", "ok", clips=count, fps=8.0, frames=8 * count + 8, duration=count + 1.0,
                    width=32, height=32, size=1)
        for name, count in zip(ids, clips, strict=True)
    ]  # fmt: skip
    lost = [VideoRecord("lost.mp4", "/nowhere/lost.mp4", "failed", error="VideoUnreadable", message="no")]

    def rows(wanted: Any) -> Any:
        for record in wanted:
            k = np.arange(record.clips)[:, None]
            drawn = {name: chance.standard_normal((record.clips, *shape), np.float32) for name, shape in shapes.items()}
            yield {
                **{name: rows if value is None else np.full_like(rows, value) for name, rows in drawn.items()},
                "clips/frames": np.hstack([8 * k, 8 * k + 16]),
                "clips/times": np.hstack([k, k + 2.0]),
                "clips/valid": np.full(record.clips, 16),
            }

    attributes = {
        "model": "mine.pth",
        "weights_sha256": "ab" * 32,
        "variant": {"name": "nano"},
        "sampling": {"clip_len": 16, "frame_interval": 1, "stride": 8, "align": "start", "tail": "pad", "fps": None},
        "preprocessing": {"size": 32, "resize": 32, "crop": "center", "mean": [0.0] * 3, "std": [1.0] * 3},
        "features": {"dtype": "float32", "compression": compression},
        "precision": "fp32",
        "decoder": "pyav",
        "device": "cpu",
        "compiled": False,
        "versions": {"vswin-extract": "1"},
        "run": run * 32,
    }
    description = FileDescription(Arrays(shapes, "float32", compression), attributes, ["a", "b", "c"] if logits else ())
    layouts.make_output(
        path, path.with_name("unfinished"), layout, rows, records + lost, description,
        shard_limit=layouts.ShardLimit(videos=2),
    )  # fmt: skip


def mutate(bases: Path, folder: Path, kind: str, chance: random.Random, most: int = 3) -> Mutant:
    """Copy a base to `folder` and change it. `kind`: structure or bytes. `most`: changes of structure, which are up to
    three; one that reads what another made may wait for ever."""
    base = chance.choice(BASES)
    shutil.copytree(bases / base, folder, dirs_exist_ok=True)
    path = folder / "out.h5"
    changed = path
    if base in ("sharded", "linked") and chance.random() < 0.3:
        changed = chance.choice(sorted(each for each in folder.rglob("*.h5") if each != path))
    if kind == "bytes":
        content, text = change_bytes(changed.read_bytes(), chance)
        changed.write_bytes(content)
        return Mutant(path, base, (changed.name, text), "")
    texts = [changed.name]
    if chance.random() < 0.04:
        return Mutant(path, base, (*texts, change_file(changed, chance)), "")
    outside = ""
    for _ in range(min(most, chance.choice([1, 1, 1, 2, 3]))):
        with h5py.File(changed, "r+") as file:
            place = Place(file, changed, chance, bases / "secret.txt", bases / "other.h5")
            change = chance.choice(chance.choice(list(CHANGES.values())))
            try:
                text = change(place)
            except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MemoryError) as error:
                text = f"{change.__name__}: not possible here ({type(error).__name__}: {first_line(error)})"
            texts.append(f"{change.__name__}: {text}"[:300])
            # an index shows the rows of its files, and does not read their tables
            shown = changed == path or re.match(r"/(clips|embedding|stage4|logits)", text)
            if isinstance(text, Outside) and shown and outside != "all":
                outside = text.refused
    return Mutant(path, base, tuple(texts), outside)


# Whole files

KINDS = ("empty", "FIFO", "directory", "circle", "device", "user block", "open", "latest", "cut", "text", "signature")


def change_file(path: Path, chance: random.Random) -> str:
    """Put something else in the place of a file, or make of it a kind of HDF5 that outputs are not."""
    content = path.read_bytes()
    kind = chance.choice(KINDS)
    path.unlink()
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "circle":
            path.symlink_to(path.name)
        case "device":
            path.symlink_to(chance.choice(["/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem"]))
        case "user block":
            path.write_bytes(bytes(512) + content)
        case "open" | "latest":
            path.write_bytes(content)
            write_latest(path)
            if kind == "open":  # as a program leaves it that is killed while it writes
                changed = bytearray(path.read_bytes())
                changed[11] |= 1
                path.write_bytes(changed)
        case _:
            contents = {"empty": b"", "cut": content[: len(content) // 2], "text": b"hello\n" * 99}
            path.write_bytes(contents.get(kind, content[:8]))
    return f"the file is {kind}"


def write_latest(path: Path) -> None:
    """Write an output again in the newest format of HDF5, without its views."""
    new = path.with_name("latest.h5")
    with h5py.File(new, "w", libver="latest") as copy, h5py.File(path) as file:
        for name in file:
            if name != "videos":
                file.copy(name, copy)
        copy.create_group("videos")
        copy.attrs.update(file.attrs)
    new.replace(path)


# Bytes

KINDS_OF_BYTES = ["flip"] * 4 + ["zeros", "ones", "random", "number", "repeat", "exchange", "remove", "cut", "grow"]
MARKS = re.compile(rb"TREE|SNOD|HEAP|GCOL|\x89HDF|OHDR")
"""Where HDF5 keeps its tables."""


def place_in(content: bytes, chance: random.Random, marks: list[int]) -> int:
    """Return a place, mostly one in the first bytes or in a table."""
    share = chance.random()
    if share < 0.3:
        return chance.randrange(min(2048, len(content)))
    if share < 0.8 and marks:
        return min(len(content) - 1, chance.choice(marks) + chance.randrange(600))
    return chance.randrange(len(content))


def change_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Flip, overwrite, repeat, exchange, remove or append bytes. Return the content and what was done."""
    changed = bytearray(content)
    marks = [match.start() for match in MARKS.finditer(content)]
    texts = []
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        at, length = place_in(bytes(changed), chance, marks), chance.choice([1, 2, 4, 8, 64, 512, 4096])
        kind = chance.choice(KINDS_OF_BYTES)
        match kind:
            case "flip":
                changed[at] ^= 1 << chance.randrange(8)
            case "zeros" | "ones" | "random":
                length = min(length, len(changed) - at)
                values = {"zeros": bytes(length), "ones": b"\xff" * length, "random": chance.randbytes(length)}
                changed[at : at + length] = values[kind]
            case "number":
                width = chance.choice([1, 2, 4, 8])
                value = chance.choice([0, 1, -1, 1 << (8 * width - 1), 255]) % (1 << 8 * width)
                changed[at : at + width] = value.to_bytes(width, "little")
            case "repeat":
                changed[at:at] = changed[at : at + length]
            case "exchange":
                other = place_in(bytes(changed), chance, marks)
                one, two = changed[at : at + length], changed[other : other + length]
                size = min(len(one), len(two))
                changed[at : at + size], changed[other : other + size] = two[:size], one[:size]
            case "remove":
                del changed[at : at + length]
            case "cut":
                if chance.random() < 0.3:
                    del changed[chance.randrange(len(changed) // 2, len(changed)) :]
            case "grow":
                changed += chance.choice([b"\0", b"\xff", b"x"]) * length
        texts.append(f"{kind} {at}")
    return bytes(changed), ", ".join(texts)[:200]
