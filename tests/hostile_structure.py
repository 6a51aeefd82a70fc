"""Changes of the structure of an output, made by HDF5 itself: types, shapes, layouts, virtual datasets, links,
attributes, tables, /linked. Each is a function that changes an open file at random, and returns what it did."""

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

TOKEN = "vSw1nS3cretT0ken"
"""In every file that no output may show anything of, and in the environment."""
HUGE = 1 << 40


@dataclass(frozen=True)
class Place:
    """The file that is changed, and what it may point to: `secret` is a text, `other` an output."""

    file: h5py.File
    path: Path
    chance: random.Random
    secret: Path
    other: Path


class Outside(str):
    """What a change did, if it points out of the file in a place that commands read."""

    refused = "all"


class OutsideInViews(Outside):
    """The same below /videos, which only `check` reads."""

    refused = "check"


Change = Callable[[Place], str]
CHANGES: dict[str, list[Change]] = {}
"""Changes of structure by family. A family is chosen first, so that each is tried as often as the others."""


def change(family: str) -> Callable[[Change], Change]:
    def register(function: Change) -> Change:
        CHANGES.setdefault(family, []).append(function)
        return function

    return register


# What is changed


def names_of(file: h5py.File) -> list[str]:
    """Return the datasets of an output by their paths, without those of single videos."""
    found = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
    for group in ("clips", "videos_table", "failures", "linked"):
        if isinstance(file.get(group), h5py.Group):
            found += [f"{group}/{name}" for name in file[group]]
    return found


def pick(place: Place, within: str = "") -> str:
    """Return a dataset, at random."""
    return place.chance.choice([name for name in names_of(place.file) if name.startswith(within)])


def pick_table(place: Place) -> str:
    return place.chance.choice([name for name in names_of(place.file) if name.startswith(("videos_table/", "clips/"))])


def replace(file: h5py.File, name: str, **how: Any) -> h5py.Dataset:
    """Make a dataset anew, with the attributes that it had."""
    kept = dict(file[name].attrs) if name in file and isinstance(file[name], h5py.Dataset) else {}
    if file.get(name, getlink=True) is not None:
        del file[name]
    made = file.create_dataset(name, **how)
    made.attrs.update(kept)
    return made


def replace_low(
    place: Place, name: str, shape: tuple[int, ...] | None, set_up: Callable[[Any], None], kind: Any = None
) -> Any:
    """Make a dataset anew by HDF5's own interface. `set_up` is given the properties of creation."""
    file = place.file
    if shape is None:
        shape = tuple(map(int, file[name].shape))
    kind = kind or file[name].id.get_type()
    del file[name]
    properties = h5p.create(h5p.DATASET_CREATE)
    set_up(properties)
    group, _, last = name.rpartition("/")
    parent = file[group or "/"].id
    return h5d.create(parent, last.encode(), kind, h5s.create_simple(shape), properties)


# Types


@change("types")
def another_type(place: Place) -> str:
    name = pick(place)
    shape, chance = place.file[name].shape, place.chance
    kinds: dict[str, Any] = {
        "float64": "f8", "float16": "f2", "int8": "i1", "uint64": "u8", "big-endian float": ">f4", "bool": "?",
        "big-endian int": ">i8", "complex": "c8", "text": h5py.string_dtype(), "bytes": "S7", "one byte": "S1",
        "ascii": h5py.string_dtype("ascii"), "compound": np.dtype([("a", "i4"), ("b", "f8")]), "opaque": "V16",
        "reference": h5py.ref_dtype, "region": h5py.regionref_dtype, "lists": h5py.vlen_dtype(np.int32),
        "enum": h5py.enum_dtype({"A": 0, "B": 1}), "arrays": np.dtype(("f4", (3,))), "long texts": "S1000000",
        "texts of text": h5py.string_dtype("utf-8", 8),
    }  # fmt: skip
    chosen = chance.choice(list(kinds))
    replace(place.file, name, shape=shape, dtype=kinds[chosen])
    return f"/{name} is of {chosen}"


@change("types")
def integers_as_floats(place: Place) -> str:
    name = pick_table(place)
    values = np.asarray(place.file[name])
    if values.dtype.kind not in "iu":
        values = np.arange(values.size).reshape(values.shape)
    replace(place.file, name, data=values + place.chance.choice([0.0, 0.5, np.nan, 1e300, np.inf]))
    return f"/{name} is of floats"


@change("types")
def texts_as_numbers(place: Place) -> str:
    name = place.chance.choice(["videos_table/id", "videos_table/status", "failures/id", "linked/path", "classes"])
    replace(place.file, name, data=np.arange(len(place.file[name])))
    return f"/{name} is of numbers"


@change("types")
def committed_type(place: Place) -> str:
    name = pick(place)
    shape, kind = place.file[name].shape, place.file[name].dtype
    if place.chance.random() < 0.5:
        del place.file[name]
        place.file[name] = kind
        return f"/{name} is a type"
    place.file["kind"] = kind
    replace(place.file, name, shape=shape, dtype=place.file["kind"])
    return f"/{name} is of a committed type"


@change("types")
def float_of_odd_bits(place: Place) -> str:
    name = pick(place)
    kind = h5t.IEEE_F32LE.copy()
    kind.set_fields(*place.chance.choice([(31, 26, 5, 0, 26), (15, 10, 5, 0, 10), (31, 20, 11, 0, 20)]))
    replace_low(place, name, None, lambda properties: None, kind)
    return f"/{name} is of floats of another division of bits"


# Shapes


@change("shapes")
def another_shape(place: Place) -> str:
    name, chance = pick(place), place.chance
    shape, kind = tuple(place.file[name].shape), place.file[name].dtype
    rows = shape[0] if shape else 1
    shapes = {
        "fewer rows": (max(0, rows - 1), *shape[1:]), "more rows": (rows + 1, *shape[1:]), "no rows": (0, *shape[1:]),
        "another dimension": (*shape, 1), "scalar": (), "one dimension": (rows,), "no channels": (*shape[:-1], 0),
        "more channels": (*shape[:-1], 17), "32 dimensions": (rows, *[1] * 31), "two dimensions": (rows, 3),
    }  # fmt: skip
    chosen = chance.choice(list(shapes))
    replace(place.file, name, shape=shapes[chosen], dtype=kind)
    return f"/{name} has {chosen}"


@change("shapes")
def no_space(place: Place) -> str:
    name = pick(place)
    replace(place.file, name, data=h5py.Empty(place.file[name].dtype))
    return f"/{name} has a null dataspace"


@change("shapes")
def huge_rows(place: Place) -> str:
    name, chance = pick(place), place.chance
    shape, kind = tuple(place.file[name].shape), place.file[name].dtype
    rows = chance.choice([10**7, 1 << 32, HUGE, 1 << 42, (1 << 62) - 1])
    how: dict[str, Any] = chance.choice([{}, {"chunks": (1024, *shape[1:]) if shape else None}])
    replace(place.file, name, shape=(rows, *shape[1:]), dtype=kind, **how)
    return f"/{name} has {rows} rows that are not stored"


@change("shapes")
def all_huge(place: Place) -> str:
    rows = place.chance.choice([10**7, 1 << 32, HUGE, 1 << 42])
    for name in names_of(place.file):
        if name == "embedding" or name.startswith("clips/"):
            old = place.file[name]
            replace(place.file, name, shape=(rows, *old.shape[1:]), dtype=old.dtype, chunks=(4096, *old.shape[1:]))
    table = place.file["videos_table"]
    table["clips"][-1] = rows - int(table["first_clip"][-1])
    return f"all clips have {rows} rows that are not stored, and the table agrees"


@change("shapes")
def huge_table(place: Place) -> str:
    rows = place.chance.choice([10**6, 10**8, HUGE])
    for name in names_of(place.file):
        if name.startswith("videos_table/"):
            old = place.file[name]
            replace(place.file, name, shape=(rows,), dtype=old.dtype, chunks=(4096,))
    return f"/videos_table has {rows} rows that are not stored"


@change("shapes")
def wide_rows(place: Place) -> str:
    name = place.chance.choice([name for name in ("embedding", "stage4", "logits") if name in place.file])
    shape = place.file[name].shape
    wide = place.chance.choice([1 << 20, 1 << 28, HUGE])
    replace(place.file, name, shape=(*shape[:-1], wide), dtype="f4", chunks=(*[1] * (len(shape) - 1), 1 << 16))
    return f"/{name} has {wide} channels that are not stored"


# Layouts


@cache
def zeros(size: int) -> bytes:
    """Return so many zeros as gzip packs them."""
    return zlib.compress(bytes(size), 4)  # a lower level needs 300 kB for 64 MB: 1000 chunks would be too large a file


@change("layouts")
def other_chunks(place: Place) -> str:
    name, chance = pick(place), place.chance
    old = place.file[name]
    values = old[()]
    shape = old.shape
    chunks = chance.choice([(1,) * len(shape), tuple(max(1, side // 2) for side in shape),
                            (10**7, *shape[1:]), shape, (3, *shape[1:])])  # fmt: skip
    filters: dict[str, Any] = chance.choice([{}, {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True},
                             {"fletcher32": True}, {"scaleoffset": 2}, {"compression": "szip"}])  # fmt: skip
    replace(place.file, name, data=values, chunks=chunks, maxshape=(None, *shape[1:]), dtype=old.dtype, **filters)
    return f"/{name} has chunks {chunks} and {filters}"


@change("layouts")
def plain_layout(place: Place) -> str:
    name = pick(place)
    layout = place.chance.choice([h5d.COMPACT, h5d.CONTIGUOUS])
    values = place.file[name][()]
    replace_low(place, name, None, lambda properties: properties.set_layout(layout))
    if values.dtype.kind != "O":
        place.file[name][...] = values
    return f"/{name} is compact or contiguous ({layout})"


@change("layouts")
def bomb(place: Place) -> str:
    """A row is a chunk of 64 MB that is packed into 64 kB; there may be many."""
    name, chance = pick(place), place.chance
    size, rows = 1 << 26, chance.choice([1, 8, 1000])
    old = place.file[name]
    text = old.dtype.kind == "O"
    kind = np.dtype("S16") if text else old.dtype
    count = size // kind.itemsize
    shape = (rows * count,) if old.ndim == 1 else (rows, *(1 for _ in old.shape[2:]), count)
    chunk = (count,) if old.ndim == 1 else (1, *shape[1:])
    made = replace(place.file, name, shape=shape, dtype=kind, chunks=chunk, compression="gzip")
    for row in range(rows):
        made.id.write_direct_chunk((row * chunk[0], *(0 for _ in shape[1:])), zeros(size))
    return f"/{name} has {rows} chunks of 64 MB, packed"


@change("layouts")
def long_text_bomb(place: Place) -> str:
    name = place.chance.choice(["videos_table/id", "videos_table/path", "failures/message", "videos_table/status"])
    rows, size = len(place.file[name]), 1 << 26
    made = replace(place.file, name, shape=(rows,), dtype=f"S{size}", chunks=(1,), compression="gzip")
    for row in range(rows):
        made.id.write_direct_chunk((row,), zeros(size))
    return f"/{name} has texts of 64 MB, packed"


@change("layouts")
def unknown_filter(place: Place) -> str:
    name, chance = pick(place), place.chance
    number = chance.choice([32015, 32001, 307, 65000])
    shape = tuple(max(1, side) for side in place.file[name].shape)
    kind = place.file[name].id.get_type()

    def set_up(properties: Any) -> None:
        properties.set_chunk(shape)
        properties.set_deflate(1)
        properties.set_filter(number, h5z.FLAG_OPTIONAL, (1, 2, 3))

    made = replace_low(place, name, shape, set_up)
    made.write_direct_chunk((0,) * len(shape), zeros(int(np.prod(shape)) * kind.get_size()))
    return f"/{name} is packed by filter {number}"


@change("layouts")
def damaged_chunk(place: Place) -> str:
    name = pick(place)
    old = place.file[name]
    shape = old.shape
    made = replace(place.file, name, shape=shape, dtype=old.dtype, chunks=shape, compression="gzip")
    made.id.write_direct_chunk((0,) * len(shape), place.chance.choice([b"x" * 100, b"", zeros(1), zeros(1 << 20)]))
    return f"/{name} has a chunk that does not unpack"


@change("layouts")
def external_storage(place: Place) -> str:
    name = pick(place)
    files = ("/proc/self/environ", "/etc/passwd", "/dev/zero")
    target = place.chance.choice([place.secret, place.other, *map(Path, files)])
    old = place.file[name]
    shape, kind = old.shape, old.dtype
    if kind.kind == "O":
        kind, shape = np.dtype("S17"), old.shape
    named = os.path.relpath(target, place.path.parent) if place.chance.random() < 0.3 else os.fspath(target)
    replace(place.file, name, shape=shape, dtype=kind, external=[(named, 0, h5py.h5f.UNLIMITED)])
    return Outside(f"/{name} is stored in {Path(target).name}")


def make_fifo(place: Place) -> Path:
    """Return a pipe beside the file that is changed."""
    fifo = place.path.with_name("fifo")
    if not fifo.exists():
        os.mkfifo(fifo)
    return fifo


@change("layouts")
def fifo_storage(place: Place) -> str:
    fifo = make_fifo(place)
    name = pick(place)
    old = place.file[name]
    shape, kind = old.shape, np.dtype("S17") if old.dtype.kind == "O" else old.dtype
    replace(place.file, name, shape=shape, dtype=kind, external=[(os.fspath(fifo), 0, h5py.h5f.UNLIMITED)])
    return Outside(f"/{name} is stored in a FIFO")


def make_virtual(place: Place, name: str, file: str, dataset: str, shape: Any = None, kind: Any = None) -> None:
    """Make a dataset show another one of the same shape."""
    old = place.file[name]
    shape = shape or old.shape
    kind = kind or (old.dtype if old.dtype.kind != "O" else h5py.string_dtype())
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(file, dataset, shape, kind)
    del place.file[name]
    place.file.create_virtual_dataset(name, layout)


@change("virtual")
def virtual_other(place: Place) -> str:
    name = place.chance.choice(["embedding", "clips/times", "videos_table/id", "videos_table/size"])
    same = name if name != "videos_table/size" else "videos_table/frames"
    rows, other = len(place.file[name]), place.other
    target = os.path.relpath(other, place.path.parent) if place.chance.random() < 0.3 else os.fspath(other)
    make_virtual(place, name, target, same, (min(rows, 8), *place.file[name].shape[1:]))
    return Outside(f"/{name} shows another output's")


@change("virtual")
def virtual_itself(place: Place) -> str:
    name, chance = pick(place), place.chance
    target = chance.choice([".", place.path.name, os.fspath(place.path)])
    source = chance.choice([name, pick(place), "nothing"])
    make_virtual(place, name, target, source)
    return f"/{name} shows /{source} of {target}"


@change("virtual")
def virtual_circle(place: Place) -> str:
    """Two files show each other's rows."""
    name = pick(place)
    loop = place.path.with_name("loop.h5")
    shape, kind = place.file[name].shape, place.file[name].dtype
    with h5py.File(loop, "w") as file:
        layout = h5py.VirtualLayout(shape, kind)
        layout[...] = h5py.VirtualSource(place.path.name, name, shape, kind)
        file.create_virtual_dataset(name, layout)
    make_virtual(place, name, loop.name, name)
    return f"/{name} shows a file that shows it"


@change("virtual")
def virtual_pattern(place: Place) -> str:
    """Files are named by a number: other%b.h5 up to the first that is not there."""
    name = place.chance.choice(["embedding", "clips/times"])
    old = place.file[name]
    kind, shape = old.id.get_type(), old.shape
    folder = place.path.parent
    for number in range(3):
        shutil.copy(place.other, folder / f"other{number}.h5")

    rows = h5s.create_simple((0, *shape[1:]), (h5s.UNLIMITED, *shape[1:]))
    ones = (1,) * (len(shape) - 1)
    rows.select_hyperslab((0,) * len(shape), (h5s.UNLIMITED, *ones), (len(old), *ones), (len(old), *shape[1:]))
    source = h5s.create_simple((len(old), *shape[1:]))
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_virtual(rows, b"other%b.h5", name.encode(), source)
    del place.file[name]
    group, _, last = name.rpartition("/")
    h5d.create(place.file[group or "/"].id, last.encode(), kind, rows, properties)
    return Outside(f"/{name} shows files by a pattern")


@change("virtual")
def virtual_fifo(place: Place) -> str:
    fifo = make_fifo(place)
    name = pick(place)
    make_virtual(place, name, place.chance.choice([fifo.name, os.fspath(fifo)]), name)
    return Outside(f"/{name} shows a FIFO")


@change("virtual")
def virtual_in_videos(place: Place) -> str:
    """The view of a video shows another output."""
    group = place.file["videos"][place.chance.choice(list(place.file["videos"]))]
    while "embedding" not in group:
        group = group[place.chance.choice(list(group))]
    shape = group["embedding"].shape
    del group["embedding"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(os.fspath(place.other), "embedding", shape, "f4")
    group.create_virtual_dataset("embedding", layout)
    return OutsideInViews(f"{group.name}/embedding shows another output's")


# Links


@change("links")
def another_link(place: Place) -> str:
    file, chance = place.file, place.chance
    groups = ["clips", "videos_table", "videos", "failures", "linked"]
    name = chance.choice([*names_of(file), *[group for group in groups if group in file]])
    other = pick(place)
    del file[name]
    match chance.randrange(8):
        case 0:
            file[name] = h5py.SoftLink(f"/{other}")
            return f"/{name} is a soft link to /{other}"
        case 1:
            file[name] = h5py.SoftLink("/nowhere")
            return f"/{name} is a dangling link"
        case 2:
            file[name] = h5py.SoftLink(f"/{name}")
            return f"/{name} is a soft link to itself"
        case 3:
            file[name] = h5py.ExternalLink(chance.choice([os.fspath(place.other), "../../" + place.other.name]), name)
            return Outside(f"/{name} is an external link to another output")
        case 4:
            file[name] = h5py.ExternalLink(chance.choice([place.path.name, "nowhere.h5"]), name)
            return Outside(f"/{name} is an external link to itself or to nothing")
        case 5:
            file[name] = file.get(other, file)
            return f"/{name} is /{other} once more"
        case 6:
            file.create_group(f"{name}/{chance.choice(['x', 'embedding', 'id'])}")
            return f"/{name} is a group"
    file[name] = chance.choice([np.arange(3), np.float64(1), "text"])
    return f"/{name} is a dataset of something else"


@change("links")
def circle(place: Place) -> str:
    name = place.chance.choice(["videos", "clips", "failures"])
    place.file[f"{name}/again"] = place.file[place.chance.choice(["/", name])]
    return f"/{name}/again is a group above it"


@change("links")
def missing(place: Place) -> str:
    groups = [name for name in ("clips", "videos_table", "videos", "failures", "linked") if name in place.file]
    name = place.chance.choice([*names_of(place.file), *groups])
    del place.file[name]
    return f"/{name} is missing"


@change("links")
def additional(place: Place) -> str:
    """Something that a file does not have."""
    chance, file = place.chance, place.file
    rows = file["clips/video"].shape[0]
    name = chance.choice(["stage5", "a\x1b[31mred", "ümlaut", "videos_table/extra", "clips/extra", "stage1", "x" * 5000,
                          "logits", "classes", "failures/extra", "stage2/inner", "linked/extra"])  # fmt: skip
    values = chance.choice([np.zeros(rows, "f4"), np.zeros((rows, 4), "f4"), np.array(["x"] * rows, object), 3])
    if name in file:
        return f"{name!r} is there"
    text = isinstance(values, np.ndarray) and values.dtype.kind == "O"
    file.create_dataset(name, data=values, dtype=h5py.string_dtype() if text else None)
    return f"there is {name!r} too"


@change("links")
def odd_view(place: Place) -> str:
    """Something else below /videos."""
    chance, videos = place.chance, place.file["videos"]
    name = chance.choice(["v", "v/0.mp4", "w.mp4", "u", "u/0.mp4", "new"])
    if name in videos:
        del videos[name]
    match chance.randrange(4):
        case 0:
            videos[name] = h5py.ExternalLink(os.fspath(place.other), "/")
            return OutsideInViews(f"/videos/{name} is another output")
        case 1:
            videos[name] = h5py.SoftLink("/")
            return f"/videos/{name} is the root"
        case 2:
            videos[name] = np.zeros(3)
            return f"/videos/{name} is a dataset"
    return f"/videos/{name} is missing"


@change("links")
def many_groups(place: Place) -> str:
    """Very many, or very deep."""
    if place.chance.random() < 0.5:
        for number in range(3000):
            place.file.create_group(f"videos/more/{number}")
        return "there are 3000 groups below /videos"
    place.file.create_group("videos/" + "/".join("d" * 1000))
    return "there are groups 1000 deep below /videos"


# Attributes

NUMBERS = (0, -1, 1, 10**30, 1 << 63, 0.5, 1e308)


@change("attributes")
def another_attribute(place: Place) -> str:
    file, chance = place.file, place.chance
    name = chance.choice(list(file.attrs))
    old = file.attrs[name]
    values: dict[str, Any] = {
        "missing": None, "a number": 7, "an array": np.zeros((2, 2)), "texts": np.array([b"a", b"b"]), "nothing": "",
        "a huge text": "x" * 60_000, "no JSON": "{", "JSON of a number": "3", "JSON of a list": "[1]",
        "null": "null", "no keys": "{}", "deep JSON": "[" * 60_000, "NaN": '{"clip_len": NaN, "name": Infinity}',
        "a huge integer": "9" * 5000, "a huge integer within": '{"clip_len": ' + "9" * 5000 + "}",
        "bytes": np.bytes_(b"\xff\xfe"), "escapes": "\x1b]0;owned\x07\x1b[2J\r\n", "NaN itself": np.nan,
        "surrogates": '{"name": "\\ud800", "clip_len": 16}', "empty space": h5py.Empty("f4"), "opaque": np.void(b"abc"),
        "a reference": file.ref, "complex": 1j, "fixed": np.bytes_(str(old)), "markup": "[red]x[/red]<script>{{7*7}}",
        "a compound": np.zeros(1, [("a", "i4")])[0], "true": True, "a schema": "vswin-extract/" + "9" * 1000,
        "another schema": "vswin-extract/2", "wrong types": json.dumps({"clip_len": "x", "name": [], "fps": {}}),
    }  # fmt: skip
    chosen = chance.choice(list(values))
    del file.attrs[name]
    if chosen != "missing":
        file.attrs[name] = values[chosen]
    return f"the attribute {name} is {chosen}"


@change("attributes")
def changed_json(place: Place) -> str:
    """One value of a nested attribute."""
    file, chance = place.file, place.chance
    name = chance.choice(["variant", "sampling", "preprocessing", "features", "versions"])
    values = json.loads(file.attrs[name])
    key = chance.choice([*values, "another"])
    values[key] = chance.choice(
        [*NUMBERS, None, [], {}, "", "x", "1/0", "0/1", "1e999", "-1", True, "\x1b[31m", {"a": {"b": [1] * 99}},
         float("nan"), "\ud800"]
    )  # fmt: skip
    if chance.random() < 0.2:
        del values[key]
    file.attrs[name] = json.dumps(values)
    return f"{name} is {json.dumps(values)}"


@change("attributes")
def attribute_of_dataset(place: Place) -> str:
    name = pick(place)
    value = place.chance.choice([7, "x" * 64, np.zeros(3), h5py.Empty("f4"), "\x1b[31m", b"\xff"])
    place.file[name].attrs["sha256"] = value
    return f"the sha256 of /{name} is {value!r}"


@change("attributes")
def many_attributes(place: Place) -> str:
    for number in range(2000):
        place.file.attrs[f"more {number}"] = number
    return "there are 2000 attributes more"


@change("attributes")
def odd_names(place: Place) -> str:
    name = place.chance.choice(["\x1b[31m", "a\nb", "[red]", "x" * 10_000])
    place.file.attrs[name] = "x"
    return f"there is an attribute {name[:20]!r}"


# Tables


@change("tables")
def odd_counts(place: Place) -> str:
    chance = place.chance
    name = chance.choice(["videos_table/first_clip", "videos_table/clips", "clips/video", "linked/videos"])
    values = place.file[name][:]
    value = chance.choice([-1, 0, 1 << 31, HUGE, (1 << 63) - 1, -(1 << 63), 2, 100])
    values[chance.randrange(len(values))] = value
    if chance.random() < 0.2:
        values[:] = value
    replace(place.file, name, data=values)
    return f"/{name} is {values.tolist()}"


@change("tables")
def odd_numbers(place: Place) -> str:
    chance = place.chance
    columns = ("fps", "duration", "width", "height", "size", "mtime", "start", "end", "frames", "skipped")
    rows = ("clips/times", "clips/frames", "clips/valid", "embedding")
    name = chance.choice([*rows, *(f"videos_table/{each}" for each in columns)])
    values = np.asarray(place.file[name]).copy()
    flat = values.reshape(-1)
    numbers = [np.nan, np.inf, -np.inf, 1e300, -1.0, 0.0]
    value = chance.choice(numbers if values.dtype.kind == "f" else [-1, 0, 1 << 30, np.iinfo(values.dtype).min])
    with np.errstate(over="ignore"):
        flat[chance.randrange(len(flat)) if chance.random() < 0.6 else slice(None)] = value
    attributes = dict(place.file[name].attrs)
    replace(place.file, name, data=values).attrs.update(attributes)
    return f"/{name} has {value}"


@change("tables")
def huge_numbers(place: Place) -> str:
    """Times and durations that are finite, in order, and of centuries."""
    factor = place.chance.choice([1e6, 1e12, 1e300])
    for name in ("clips/times", "videos_table/duration"):
        values = np.asarray(place.file[name]) * factor
        replace(place.file, name, data=values)
    return f"times are multiplied by {factor}"


@change("tables")
def odd_texts(place: Place) -> str:
    chance = place.chance
    others = ("path", "status", "message", "etag")
    name = chance.choice([*["videos_table/id"] * 6, *(f"videos_table/{each}" for each in others), "failures/id",
                          "failures/error", "failures/message", "classes"])  # fmt: skip
    texts = place.file[name].asstr()[:].tolist() or [""]
    outside = os.fspath(place.path.parent.parent / "written-outside")
    odd = chance.choice(
        ["", "same", "../../written-outside", outside, "a\nb", "\x1b[31mred\x1b]0;title\x07", "x" * 300, "x" * 100_000,
         "/", ".", "v/0.mp4/below", "v", "\u202egnp.exe", "a\x7fb\x9b31m", "<script>alert(1)</script>", "[red]x[/red]",
         "{{7*7}}", "$x^2_{", "$\\frac", "C:\\x", "a//b", "-rf", "features", "@1.0", os.fspath(place.secret),
         "..\\..\\x", "a" * 254 + ".mp4"]
    )  # fmt: skip
    if odd == "same":
        texts = [texts[0]] * len(texts)
    else:
        texts[chance.randrange(len(texts))] = odd
    replace(place.file, name, data=np.array(texts, object), dtype=h5py.string_dtype())
    return f"/{name} has {odd[:60]!r}"


@change("tables")
def odd_bytes(place: Place) -> str:
    """Texts that are not UTF-8, or have a NUL."""
    chance = place.chance
    name = chance.choice(["videos_table/id", "videos_table/status", "failures/id", "classes", "linked/path"])
    texts = [text.encode() for text in place.file[name].asstr()[:]] or [b""]
    odd = [b"\xff\xfe", b"a\0b", b"\xed\xa0\x80", b"\xc3", b"\x80" * 1000]
    texts[chance.randrange(len(texts))] = chance.choice(odd)
    if chance.random() < 0.5:
        replace(place.file, name, data=np.array(texts, object), dtype=h5py.string_dtype())
    else:
        replace(place.file, name, data=np.array(texts, f"S{max(map(len, texts)) + 1}"))
    return f"/{name} has bytes that are no text"


@change("tables")
def shared_text(place: Place) -> str:
    """Very many rows that all have one long text."""
    chance = place.chance
    name = chance.choice(["videos_table/id", "videos_table/path", "failures/message", "failures/id"])
    size, rows = chance.choice([(1 << 16, 1 << 16), (1 << 22, 1 << 12), (16, 1 << 20)])
    made = replace(place.file, name, shape=(rows,), maxshape=(None,), chunks=(rows,), dtype=h5py.string_dtype())
    place.file.create_dataset("one", (1,), maxshape=(None,), chunks=(1,), dtype=h5py.string_dtype())[0] = "y" * size
    place.file.flush()
    _, row = place.file["one"].id.read_direct_chunk((0,))
    made.id.write_direct_chunk((0,), row * rows)
    del place.file["one"]
    return f"/{name} has {rows} rows that share a text of {size} bytes"


@change("tables")
def odd_references(place: Place) -> str:
    """Texts whose places in the file are invented."""
    chance = place.chance
    name = chance.choice(["videos_table/id", "videos_table/path", "failures/message", "classes"])
    rows = len(place.file[name])
    made = replace(place.file, name, shape=(rows,), maxshape=(None,), chunks=(max(1, rows),), dtype=h5py.string_dtype())
    length = chance.choice([0, 1, 1 << 20, (1 << 32) - 1])
    row = struct.pack("<IQI", length, chance.choice([0, 96, 2048, 1 << 40, (1 << 64) - 1]), chance.choice([0, 1, 9999]))
    made.id.write_direct_chunk((0,), row * max(1, rows))
    return f"/{name} has texts of {length} bytes at an invented place"


# /linked


@change("linked")
def odd_linked(place: Place) -> str:
    file, chance, folder = place.file, place.chance, place.path.parent
    if "linked" not in file:
        table = file.create_group("linked")
        for name, value in (("path", "0.h5"), ("run", "0" * 32)):
            table.create_dataset(name, data=np.array([value], object), dtype=h5py.string_dtype())
        table["videos"] = np.array([len(file["videos_table/id"])])
    paths = file["linked/path"].asstr()[:].tolist()
    fifo = folder / "fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    if not (folder / "link.h5").is_symlink():
        (folder / "link.h5").symlink_to(place.other)
    odd: str = chance.choice(
        [os.fspath(place.other), "../../" + place.other.name, "fifo", "/dev/zero", "/dev/stdin", ".", "/", "",
         "nowhere.h5", place.path.name, "link.h5", "x" * 5000, "a\x1b[31m", os.fspath(place.secret), "../" * 50,
         "/proc/self/environ"]
    )  # fmt: skip
    match chance.randrange(4):
        case 0:
            paths = [odd] * 5000
        case 1:
            paths = [*paths, odd]
        case _:
            paths[chance.randrange(len(paths))] = odd
    replace(file, "linked/path", data=np.array(paths, object), dtype=h5py.string_dtype())
    if chance.random() < 0.5:  # the other columns agree
        for name in ("run", "videos"):
            values = list(file[f"linked/{name}"][:])
            values = (values + [values[0]] * len(paths))[: len(paths)]
            data = np.array(values, object if name == "run" else np.int64)
            replace(file, f"linked/{name}", data=data, dtype=h5py.string_dtype() if name == "run" else None)
    return f"/linked has {len(paths)} files, among them {odd[:60]!r}"


@change("linked")
def declared_outside(place: Place) -> str:
    """Everything agrees, but a file that is linked to is none of this output's."""
    if "linked" not in place.file:
        raise KeyError("no index")
    target = place.chance.choice([os.fspath(place.other), os.path.relpath(place.other, place.path.parent)])
    paths = place.file["linked/path"].asstr()[:].tolist()
    replace(place.file, "linked/path", data=np.array([*paths[:-1], target], object), dtype=h5py.string_dtype())
    place.file["linked/run"][-1] = "a" * 32
    rows = len(place.file["embedding"])
    layout = h5py.VirtualLayout((rows, 16), "f4")
    layout[...] = h5py.VirtualSource(target, "embedding", (8, 16), "f4")[:rows]
    del place.file["embedding"]
    place.file.create_virtual_dataset("embedding", layout)
    return Outside("/linked declares another output, outside the directory")


@change("linked")
def no_linked(place: Place) -> str:
    del place.file["linked"]
    return Outside("/linked is missing")
