"""What the .json files of a journal say, checked: a file that is cut off, or edited, is damaged, and nothing else.

Every function here raises ValueError for a value of another type, or a number out of range, than this package writes.
"""

import json
import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from vswin_extract.store.attributes import NESTED
from vswin_extract.store.schema import (
    FEATURES,
    INT32,
    INT64,
    MOST_FRAMES,
    Arrays,
    VideoRecord,
    complete_settings,
    number_out_of_range,
)
from vswin_extract.video.ranges import ClipRange

MOST_BYTES = 1 << 30
"""Bytes of a .json file that are read: the list of a million videos takes a tenth of it."""
MOST_DIMENSIONS = 8
COUNTS = ("clips", "frames", "skipped", "width", "height")
"""Fields of a record that count something."""
TEXTS = ("id", "path", "transfer", "matrix", "etag", "error", "message")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises FileNotFoundError, and ValueError for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                raise ValueError(f"{path} is not a file of this package")
            text = file.read(MOST_BYTES)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a directory") from error
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    return _dict(content)


def check_job(content: dict[str, Any]) -> dict[str, Any]:
    """Return what job.json says, with what earlier versions leave out."""
    run = content.get("run")
    if not isinstance(run, str) or not re.fullmatch(r"[0-9A-Za-z]{1,64}", run):  # it becomes part of file names
        raise ValueError(f"run is {run!r}")
    if content.get("arrays") is not None:
        arrays_of(content["arrays"])
    output = content.get("output")
    return {
        **content,
        "settings": complete_settings(_facts(content.get("settings"))),
        "arrays": content.get("arrays"),
        "attributes": _facts(content.get("attributes", {})),
        "classes": [_text(name) for name in _list(content.get("classes", []))],
        "output": None if output is None else _text(output),
        "published": content.get("published") is True,
    }


def arrays_of(stored: Any) -> Arrays:
    """Return the feature datasets that job.json names."""
    for name in ("dtype", "compression"):
        if not NESTED["features"][name](_dict(stored).get(name)):
            raise ValueError(f"{name} is {stored.get(name)!r}")
    shapes = {}
    for name, shape in _dict(stored.get("shapes")).items():
        if name not in FEATURES or len(_list(shape)) > MOST_DIMENSIONS:
            raise ValueError(f"shape of {name} is {shape!r}")
        shapes[name] = tuple(_count(size, INT32, least=1) for size in shape)
        if math.prod(shapes[name]) > INT32:
            raise ValueError(f"shape of {name} is {shape!r}")
    return Arrays(shapes, stored["dtype"], stored["compression"])


def check_list(content: dict[str, Any]) -> dict[str, int | None]:
    """Return the ids that videos.json names, each with its clips or None."""
    ids = [_text(name) for name in _list(content.get("ids"))]
    clips = [None if clips is None else _count(clips, MOST_FRAMES) for clips in _list(content.get("clips"))]
    return dict(zip(ids, clips, strict=True))


def check_entry(content: dict[str, Any]) -> tuple[list[VideoRecord], str]:
    """Return the records of an entry file, and the sha256 of their rows, which is "" if there are none."""
    records = [_record(_dict(stored)) for stored in _list(content.get("videos"))]
    sha256 = _text(content.get("sha256"))
    if not re.fullmatch(r"([0-9a-f]{64})?", sha256):
        raise ValueError(f"sha256 is {sha256!r}")
    if not sha256 and any(record.clips for record in records):
        raise ValueError("there are clips, but no sha256")
    return records, sha256


def _record(stored: dict[str, Any]) -> VideoRecord:
    clip_range = stored.pop("span", None) or stored.get("clip_range")  # "span" in journals of earlier versions
    try:
        record = VideoRecord(**{**stored, "clip_range": _clip_range(clip_range)})
    except TypeError as error:  # a field is missing, or not known
        raise ValueError(str(error)) from error
    for name in TEXTS:
        _text(getattr(record, name))
    for name in COUNTS:
        _count(getattr(record, name), INT32 if name in ("width", "height") else MOST_FRAMES)
    _count(record.size, INT64, least=-1)
    for name in ("fps", "duration", "mtime"):
        _number(getattr(record, name))
    for end in (record.start, record.end):
        if end is not None:
            _number(end)
    if record.status != "failed" and (wrong := number_out_of_range(record)):
        raise ValueError(f"{wrong} is out of range")
    if record.status not in ("ok", "partial", "failed") or (record.status == "failed" and record.clips):
        raise ValueError(f"status is {record.status!r} of a video with {record.clips} clips")
    if record.status != "failed" and not record.clips and not record.clip_range[0]:  # a range may lie behind the end
        raise ValueError("a video that did not fail has no clips")
    return record


def _clip_range(stored: Any) -> ClipRange:
    first, end = _list(stored)  # ValueError if there are not two
    _count(first, MOST_FRAMES)
    if end is not None and _count(end, MOST_FRAMES) <= first:
        raise ValueError(f"clip range is {stored!r}")
    return first, end


def _facts(stored: Any) -> dict[str, Any]:
    """Settings and attributes: what an output can hold as root attributes."""
    for name, value in _dict(stored).items():
        _text(name)
        if isinstance(value, str):
            _text(value)
        elif isinstance(value, int) and abs(value) > INT64:
            raise ValueError(f"{name} is {value}")
        if value is None or (name in NESTED and not isinstance(value, dict)):
            raise ValueError(f"{name} is {value!r}")
    return stored  # type: ignore[no-any-return]


def _dict(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise ValueError(f"{type(stored).__name__} in place of an object")
    return stored


def _list(stored: Any) -> list[Any]:
    if not isinstance(stored, list):
        raise ValueError(f"{type(stored).__name__} in place of a list")
    return stored


def _text(stored: Any) -> str:
    """A text that HDF5 can store. It may have the escapes by which Python names files that are not UTF-8."""
    if not isinstance(stored, str) or "\0" in stored:
        raise ValueError(f"{stored!r} in place of a text")
    stored.encode("utf-8", "surrogateescape")  # UnicodeEncodeError is a ValueError
    return stored


def _count(stored: Any, most: int, least: int = 0) -> int:
    if type(stored) is not int or not least <= stored <= most:
        raise ValueError(f"{stored!r} in place of a number from {least} to {most}")
    return stored


def _number(stored: Any) -> None:
    if type(stored) not in (int, float) or not abs(stored) <= sys.float_info.max:  # NaN compares as False
        raise ValueError(f"{stored!r} in place of a number")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
