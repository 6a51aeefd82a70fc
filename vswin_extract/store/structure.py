"""The structure of an output, which is checked before anything is read from it: an output may come from a stranger.

A file can make HDF5 read other files (external storage, external links, virtual datasets), load a library (filters),
take as much memory as the file claims to need (rows, chunks, texts), write past its memory (mappings of virtual
datasets), or wait for ever (a link to a pipe). What is checked here takes a few milliseconds, since no rows are read,
and /videos is not looked into, which has a group for each video. For that reason nothing but `vswin check` reads below
/videos.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t, h5z
from numpy.typing import NDArray

from vswin_extract.errors import first_line
from vswin_extract.store.attributes import MOST_TEXT, attribute_problems, kept_crops
from vswin_extract.store.hdf5 import READ_ERRORS, Problem
from vswin_extract.store.heaps import Collections, check_heaps, check_mappings
from vswin_extract.store.schema import (
    ADDED,
    CLIP_COLUMNS,
    FAILURE_TEXTS,
    FEATURES,
    RANGES,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
)

MOST_CHUNK = 16 << 20
"""Bytes of a chunk, at most, unless a row is larger. Those that this package writes have 1 MiB, or one row."""
MOST_EXPANSION = 1032
"""How many times as large as its compressed bytes rows can be: deflate reaches no more."""
MOST_MEMBERS = 1000
"""Members of a group other than /videos, at most."""
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF}
"""Filters of HDF5 and h5py themselves. For others HDF5 would load a library from where the environment says."""
PATTERN = re.compile("%[%b]")
"""What HDF5 does not take literally in the name of a linked file."""
REFERENCE = 16
"""Bytes by which a file refers to a text: its length in 4 bytes, and where it is."""
TYPES = {
    "float16": (h5t.IEEE_F16LE, h5t.IEEE_F16BE),
    "float32": (h5t.IEEE_F32LE, h5t.IEEE_F32BE),
    "float64": (h5t.IEEE_F64LE, h5t.IEEE_F64BE),
    "int32": (h5t.STD_I32LE, h5t.STD_I32BE),
    "int64": (h5t.STD_I64LE, h5t.STD_I64BE),
}
MOST_CHANNELS = 4096
"""Channels of embeddings and stages, at most. The largest published network has 1536."""


class Unsound(Exception):
    """Something in a file must not be read. The text says why."""


@dataclass(frozen=True)
class Expected:
    """What a dataset must be: its type ("text", or one of TYPES), how many axes a row has, and their lengths if they
    are known."""

    types: tuple[str, ...]
    axes: tuple[int, ...] = (0,)
    row: tuple[int, ...] | None = None


TEXT = Expected(("text",))
TABLES: dict[str, dict[str, Expected]] = {
    "linked": {"path": TEXT, "run": TEXT, "videos": Expected(("int64",))},
    "clips": {name: Expected((kind,), (len(row),), row) for name, (row, kind) in CLIP_COLUMNS.items()},
    "videos_table": {
        **dict.fromkeys(VIDEO_TEXTS, TEXT),
        **{name: Expected((np.dtype(kind).name,)) for name, kind in VIDEO_NUMBERS.items()},
        **{name: Expected(("int64",)) for name in ("first_clip", "clips")},
        **{name: Expected(("float64",)) for name in ("start", "end")},
    },
    "failures": dict.fromkeys(FAILURE_TEXTS, TEXT),
}
"""The groups of columns. /linked is the first, since it says what others may show."""
EXPECTED = {
    **{f"{group}/{name}": expected for group, columns in TABLES.items() for name, expected in columns.items()},
    **{name: Expected(("float32", "float16"), axes) for name, axes in FEATURES.items()},
    "classes": TEXT,
}
"""All datasets that are read."""


@dataclass
class Found:
    """What was found in a file. `size`: its bytes; `base`: those before HDF5 begins; `widths`: those of its addresses
    and lengths. `links`: the files that an index links to, as it names them, and `virtual` the datasets whose rows are
    there. `datasets` may be read, and have these `shapes`. `collections`: those of mappings that were read. `crops`: of
    a clip, that the rows of features have as their first axis; 0 if there is no such axis."""

    size: int
    descriptor: int
    base: int
    widths: tuple[int, int]
    links: Sequence[str] = ()
    virtual: list[str] = field(default_factory=list)
    datasets: dict[str, h5d.DatasetID] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    collections: Collections = field(default_factory=dict)
    crops: int = 0


def look_into(file: h5f.FileID, crops: int = 0) -> Found:
    """Return what is known of a file before anything in it is opened. `crops`: as in `Found`."""
    creation, descriptor = file.get_create_plist(), file.get_vfd_handle()
    size = os.fstat(descriptor).st_size
    return Found(size, descriptor, creation.get_userblock(), creation.get_sizes(), crops=crops)


def find_problems(file: h5py.File) -> tuple[list[Problem], Found]:
    """Return what is wrong with the structure of an output, and what was found in it. If nothing is wrong, its
    attributes, tables and rows can be read; those of an index if nothing is wrong with the files that it links to."""
    found = look_into(file.id)
    try:
        problems = [*_find_problems(file, found)]
        if not problems:
            problems = [*_table_problems(found)]
    except READ_ERRORS as error:
        problems = [Problem("/", f"cannot be read: {first_line(error)}")]
    return problems, found


def _find_problems(file: h5py.File, found: Found) -> Iterator[Problem]:
    yield from (Problem("/", what) for what in attribute_problems(file))
    found.crops = kept_crops(file)
    root = file["/"].id
    kinds = link_kinds(root)
    yield from (Problem(f"/{name}", "is a link") for name, kind in kinds.items() if kind != h5l.TYPE_HARD)
    for group, columns in TABLES.items():
        if group in kinds or group != "linked":
            yield from _group_problems(root, group, columns, found)
        if group == "linked" and "linked/path" in found.datasets:
            found.links = file["linked/path"].asstr()[:].tolist()
    for name in (*FEATURES, "classes"):
        if name in kinds:
            yield from _dataset_problems(root, name, found)
    if kinds.get("videos") == h5l.TYPE_HARD:
        try:
            open_group(root, "videos", found)
        except Unsound as error:
            yield Problem("/videos", str(error))
    yield from _row_problems(found.shapes)


def link_kinds(group: h5g.GroupID) -> dict[str, int]:
    """Return the members of a group, with the type of the link to each. Raises ValueError if there are very many."""
    if group.get_num_objs() > MOST_MEMBERS:
        raise ValueError(f"a group has more than {MOST_MEMBERS} members")
    return {name.decode("utf-8", "surrogateescape"): group.links.get_info(name).type for name in group}


def _group_problems(root: h5g.GroupID, name: str, columns: Mapping[str, Expected], found: Found) -> Iterator[Problem]:
    try:
        kinds = link_kinds(open_group(root, name, found))
    except Unsound as error:
        yield Problem(f"/{name}", str(error))
        return
    for column in columns:
        if column in kinds or column not in ADDED:
            yield from _dataset_problems(root, f"{name}/{column}", found)
    for other, kind in kinds.items():
        if other not in columns and kind != h5l.TYPE_HARD:
            yield Problem(f"/{name}/{other}", "is a link")


def open_member(group: h5g.GroupID, name: str, found: Found) -> h5g.GroupID | h5d.DatasetID | h5t.TypeID:
    """Open a member of a group. Raises Unsound if it is missing, a link to something else, or a virtual dataset that
    HDF5 must not open."""
    key = name.encode("utf-8", "surrogateescape")
    try:
        link = group.links.get_info(key)
    except READ_ERRORS:
        raise Unsound("is missing") from None
    if link.type != h5l.TYPE_HARD:
        raise Unsound("is a link")
    if found.widths != (8, 8):
        raise Unsound("is in a file with other addresses than those of 8 bytes")
    try:
        check_mappings(found.descriptor, found.base, link.u, found.collections)
        return h5o.open(group, key)
    except READ_ERRORS as error:
        raise Unsound(f"cannot be opened: {first_line(error)}") from error


def open_group(group: h5g.GroupID, name: str, found: Found) -> h5g.GroupID:
    """Open a member of a group that is a group too. Raises Unsound if it is not."""
    member = open_member(group, name, found)
    if not isinstance(member, h5g.GroupID):
        raise Unsound("is not a group")
    return member


def _dataset_problems(root: h5g.GroupID, name: str, found: Found) -> Iterator[Problem]:
    try:
        dataset = open_member(root, name, found)
        found.shapes[name] = check_dataset(dataset, name, found)
        found.datasets[name] = dataset
    except Unsound as error:
        yield Problem(f"/{name}", str(error))
    except READ_ERRORS as error:
        yield Problem(f"/{name}", f"cannot be read: {first_line(error)}")


def check_dataset(dataset: object, name: str, found: Found) -> tuple[int, ...]:
    """Return the shape of a dataset. Raises Unsound if it is not what a dataset of this name must be, or if reading it
    would read another file, or take more memory than the file has bytes for. A virtual dataset may show the datasets
    of this name in the files of `found.links`."""
    if not isinstance(dataset, h5d.DatasetID):
        raise Unsound("is not a dataset")
    expected = EXPECTED[name]
    # only values that are in this file, in one piece, have an offset; to ask for more takes longer
    creation = None if dataset.get_offset() is not None else dataset.get_create_plist()
    if creation is not None and creation.get_external_count():
        raise Unsound("has its values in another file")
    virtual = creation is not None and creation.get_layout() == h5d.VIRTUAL
    if creation is not None and virtual:  # to ask for the shape of a virtual dataset may already open other files
        _check_sources(creation, name, found)
        found.virtual.append(name)
    shape: tuple[int, ...] = dataset.shape
    crops = (found.crops,) if found.crops and name in FEATURES else ()
    row = shape[1 + len(crops) :]
    if shape[1:] != (*crops, *row) or len(row) not in expected.axes or (expected.row not in (None, row)):
        raise Unsound(f"has the shape {shape[:8]}, which it cannot have")
    if 0 in shape[1:] or (name in FEATURES and name != "logits" and shape[-1] > MOST_CHANNELS):
        raise Unsound(f"has the shape {shape[:8]}, which it cannot have")
    kind = dataset.get_type()
    if expected != TEXT:
        if not any(kind.equal(each) for name in expected.types for each in TYPES[name]):
            raise Unsound(f"is not of the type {' or '.join(expected.types)}")
    elif kind.get_class() != h5t.STRING:
        raise Unsound("does not consist of texts")
    if not virtual:
        variable = expected == TEXT and kind.is_variable_str()
        itemsize = REFERENCE if variable else kind.get_size()
        _check_size(dataset, creation, shape, itemsize, found)
        if variable:
            _check_texts(dataset, creation, shape[0], found)
        elif itemsize > MOST_TEXT:
            raise Unsound(f"has texts of {itemsize} bytes")
    return shape


def _check_sources(creation: h5p.PropDCID, name: str, found: Found) -> None:
    """Raise Unsound if a virtual dataset shows anything but the datasets of the same name in linked files."""
    if EXPECTED[name] == TEXT or not found.links:
        raise Unsound("is virtual: it shows values of other datasets or files")
    allowed = {link for link in found.links if not PATTERN.search(link)}
    for number in range(creation.get_virtual_count()):
        file, source = creation.get_virtual_filename(number), creation.get_virtual_dsetname(number)
        if file not in allowed or source not in (name, f"/{name}"):
            raise Unsound(f"shows {source} of {file}, which the index does not link to")


def _check_size(
    dataset: h5d.DatasetID, creation: h5p.PropDCID | None, shape: tuple[int, ...], itemsize: int, found: Found
) -> None:
    """Raise Unsound if the file is too small for the rows, or if chunks are large. `creation`: None for values in one
    piece."""
    row_bytes, most = math.prod(shape[1:]) * itemsize, found.size
    if creation is not None and creation.get_layout() == h5d.CHUNKED:
        most *= _check_chunks(creation, row_bytes, itemsize)
    else:
        most = min(dataset.get_storage_size(), most - (dataset.get_offset() or 0))
    if shape[0] * row_bytes > most:
        raise Unsound(f"claims to have {shape[0]} rows, for which the file is too small")


def _check_chunks(creation: h5p.PropDCID, row_bytes: int, itemsize: int) -> int:
    """Return how many times as large as the file the rows can be. Raises Unsound for large chunks and other filters."""
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    packed = [each for each in filters if each in (h5z.FILTER_DEFLATE, h5z.FILTER_LZF)]
    if not FILTERS.issuperset(filters) or len(packed) > 1 or len(filters) > 3:
        raise Unsound("is compressed by other filters than gzip or LZF")
    if (chunk := math.prod(creation.get_chunk()) * itemsize) > max(MOST_CHUNK, row_bytes):
        raise Unsound(f"has chunks of {chunk} bytes")
    return MOST_EXPANSION if packed else 1


def _check_texts(dataset: h5d.DatasetID, creation: h5p.PropDCID | None, rows: int, found: Found) -> None:
    """Raise Unsound if texts are longer than they can be, by what refers to them. Each is stored once, so all together
    cannot be longer than the file."""
    if creation is None or not rows:
        raw = os.pread(found.descriptor, rows * REFERENCE, dataset.get_offset()) if rows else b""
    elif creation.get_layout() == h5d.CHUNKED:  # as other programs store them when they compress a file
        (step,) = creation.get_chunk()
        raw = b"".join(_unpack(dataset, creation, first, step * REFERENCE) for first in range(0, rows, step))
    else:
        raise Unsound(
            "has texts in the compact layout, which is not read; h5repack -l CONTI writes it in the usual one"
        )
    lengths = np.frombuffer(raw, "<u4")[: rows * REFERENCE // 4 : REFERENCE // 4]
    if len(lengths) < rows or lengths.max(initial=0) > MOST_TEXT or lengths.sum(dtype=np.int64) > found.size:
        raise Unsound(f"has texts of more than {MOST_TEXT} bytes, or more than the file")
    references = np.frombuffer(raw[: rows * REFERENCE], [("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
    heaps = np.unique(references["address"][references["length"] > 0]).tolist()
    check_heaps(found.descriptor, found.base, heaps, found.size)


def _unpack(dataset: h5d.DatasetID, creation: h5p.PropDCID, first: int, nbytes: int) -> bytes:
    """Return the chunk of a column that begins with this row, of so many bytes."""
    mask: int
    raw: bytes
    mask, raw = dataset.read_direct_chunk((first,))
    for number in reversed(range(creation.get_nfilters())):
        kind = creation.get_filter(number)[0]
        if mask >> number & 1:  # left out for this chunk
            continue
        if kind == h5z.FILTER_DEFLATE:
            try:
                raw = zlib.decompressobj().decompress(raw, nbytes)
            except zlib.error as error:
                raise Unsound(f"cannot be read: {error}") from error
        elif kind == h5z.FILTER_SHUFFLE and len(raw) == nbytes:
            raw = np.frombuffer(raw, np.uint8).reshape(REFERENCE, -1).T.tobytes()
        elif kind == h5z.FILTER_LZF:
            raise Unsound("has texts compressed by LZF, which is not read; h5repack -f GZIP=4 compresses it by gzip")
        else:  # HDF5 allows Fletcher32 for no texts of variable length
            raise Unsound("has a chunk of another length, or with another filter, than texts have")
    if len(raw) != nbytes:
        raise Unsound("has a chunk of another length than it says")
    return raw


def _row_problems(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Yield datasets that have not as many rows as the others of their kind."""
    for rule, thing in (("clips/video", "clips"), ("videos_table/id", "videos"), ("failures/id", "failures"),
                        ("linked/path", "files")):  # fmt: skip
        if rule not in shapes:
            continue
        group, _, _ = rule.partition("/")
        for name, shape in shapes.items():
            same = name.startswith(f"{group}/") or (group == "clips" and name in FEATURES)
            if same and shape[0] != shapes[rule][0]:
                yield Problem(f"/{name}", f"has {shape[0]} rows, but there are {shapes[rule][0]} {thing}")


def _table_problems(found: Found) -> Iterator[Problem]:
    """Yield numbers of videos that cannot be."""
    clips = found.shapes["clips/video"][0]
    firsts, counts = (read_numbers(found, f"videos_table/{name}") for name in ("first_clip", "clips"))
    if counts.min(initial=1) < 1:
        yield Problem("/videos_table/clips", "has a video without clips")
    elif counts.max(initial=0) > clips or counts.sum() != clips or not np.array_equal(firsts, counts.cumsum() - counts):
        yield Problem("/videos_table", "does not divide the clips among the videos, one video after another")
    if found.links:
        shares = read_numbers(found, "linked/videos")
        if shares.min() < 0 or shares.max() > len(counts) or shares.sum() != len(counts):
            yield Problem("/linked/videos", "does not divide the videos among the files")
    for name, (least, most) in RANGES.items():
        if f"videos_table/{name}" not in found.datasets:  # a file of an earlier version
            continue
        values = read_numbers(found, f"videos_table/{name}")
        low, high = values.min(initial=0), values.max(initial=0)  # NaN if one is NaN
        if not (low >= least and high <= most):
            yield Problem(f"/videos_table/{name}", "has a number that cannot be")


def read_numbers(found: Found, name: str) -> NDArray[Any]:
    """Read a column of numbers."""
    dataset = found.datasets[name]
    if (offset := dataset.get_offset()) is not None:  # a third of the time that HDF5 takes
        raw = os.pread(found.descriptor, found.shapes[name][0] * dataset.dtype.itemsize, offset)
        return np.frombuffer(raw, dataset.dtype)
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values
