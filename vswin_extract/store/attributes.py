"""The root attributes of an output, read without trust: each is one number or one text of bounded length, and the
nested ones are JSON of known types."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5t

from vswin_extract.store.heaps import text_lengths
from vswin_extract.store.schema import SCHEMA, SCHEMA_OF_CROPS
from vswin_extract.video.geometry import CROPS

MOST_TEXT = 1 << 20
"""Bytes of a text in an attribute or in a table, at most."""
MOST_ATTRIBUTES = 200
TEXTS = ("schema", "created", "model", "weights_sha256", "precision", "decoder", "device", "run")
"""Root attributes that are texts."""
VARIABLE = h5py.string_dtype()
DEEPEST = 8
"""Lists and dictionaries within one another in JSON, at most."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_rate(value: Any) -> bool:
    """True for None and a fraction as 25 or 30000/1001. Larger numbers would take long to compute with."""
    return value is None or (_is_text(value) and bool(re.fullmatch(r"[1-9]\d{0,17}(/[1-9]\d{0,17})?", value, re.A)))


NESTED: dict[str, Mapping[str, Callable[[Any], bool]]] = {
    "variant": {"name": _is_text},
    "sampling": {
        "clip_len": _is_whole, "frame_interval": _is_whole, "stride": _is_whole, "fps": _is_rate,
        "align": lambda value: value in ("start", "center"), "tail": lambda value: value in ("pad", "drop", "shift"),
    },
    "preprocessing": {"size": _is_whole, "resize": _is_whole, "crop": _is_text},
    "features": {
        "dtype": lambda value: value in ("float16", "float32"),
        "compression": lambda value: value in ("none", "lzf", "gzip"),
        "crop_pool": lambda value: value in ("mean", "none"),
    },
    "versions": {},
}  # fmt: skip
"""Root attributes that are JSON: a dictionary each, and what is expected of its values, where it has them."""


def stored_value(
    owner: h5py.HLObject, name: str, lengths: Mapping[bytes, int] | None = None
) -> str | bool | int | float | None:
    """Return an attribute that is one finite number or one text of at most MOST_TEXT bytes. None if there is no such
    attribute, or if it is anything else, which is not read. The same for a text in a file of the newest format of HDF5
    that keeps attributes outside the header of their owner, as this package never does. `lengths`: those of
    `text_lengths`, if several attributes are read."""
    key = name.encode("utf-8", "surrogateescape")
    if not h5a.exists(owner.id, key):
        return None
    attribute = h5a.open(owner.id, key)
    kind = attribute.get_type()
    if kind.get_class() not in (h5t.STRING, h5t.INTEGER, h5t.FLOAT, h5t.ENUM) or attribute.shape != ():
        return None
    if attribute.get_storage_size() > MOST_TEXT:
        return None
    variable = kind.get_class() == h5t.STRING and kind.is_variable_str()
    if variable and (text_lengths(owner) if lengths is None else lengths).get(key, math.inf) > MOST_TEXT:
        return None
    read = np.zeros((), VARIABLE if variable else attribute.dtype)  # which type it is takes longest to find out
    attribute.read(read)
    value = read[()]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        return value.decode() if len(value) <= MOST_TEXT and b"\0" not in value else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float) else None


def stored_values(owner: h5py.HLObject) -> dict[str, str | bool | int | float]:
    """Return the attributes that `stored_value` reads, without the others, and without those whose names are not
    text."""
    lengths = text_lengths(owner)
    values = {name: stored_value(owner, name, lengths) for name in owner.attrs if isinstance(name, str)}
    return {name: value for name, value in values.items() if value is not None}


def unread_texts(owner: h5py.HLObject) -> bool:
    """True if no text of an owner's attributes is read, since they are not in its header."""
    return h5a.get_num_attrs(owner.id) > 0 and not text_lengths(owner)


def parse_nested(name: str, text: str | bool | int | float) -> dict[str, Any]:
    """Return the value of one of the NESTED attributes. Raises ValueError if it is not as expected."""
    if not isinstance(text, str):
        raise ValueError("is not JSON")
    try:
        value = json.loads(text, parse_constant=_refuse)
        _expect_plain(value, DEEPEST)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON that this version can read") from error
    if not isinstance(value, dict):
        raise ValueError("is not a dictionary")
    for key, expected in NESTED[name].items():
        if key in value and not expected(value[key]):
            raise ValueError(f"has a value of {key} that cannot be: {str(value[key])[:50]!r}")
    return value


def kept_crops(file: h5py.File) -> int:
    """Return how many crops of a clip the rows of an output's features have, as their first axis; 0 if there is no such
    axis, because they were averaged."""
    try:
        features, pixels = (
            parse_nested(name, stored_value(file, name) or "{}") for name in ("features", "preprocessing")
        )
    except ValueError:  # which `attribute_problems` says
        return 0
    return CROPS.get(pixels.get("crop", ""), 0) if features.get("crop_pool") == "none" else 0


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _expect_plain(value: Any, depth: int) -> None:
    """Raise ValueError for infinite numbers, text that UTF-8 cannot encode, and lists that are nested too deeply."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError("too deep")
        for each in value if isinstance(value, list) else [*value, *value.values()]:
            _expect_plain(each, depth - 1)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("infinite")


def attribute_problems(file: h5py.File) -> Iterator[str]:
    """Yield what is wrong with the root attributes. Attributes of other names may be anything, and are not read."""
    if (count := h5a.get_num_attrs(file.id)) > MOST_ATTRIBUTES:
        yield f"it has {count} attributes"
        return
    known = {*TEXTS, *NESTED, "complete"}
    lengths = text_lengths(file)
    values = {name: stored_value(file, name, lengths) for name in known}
    for name in sorted(known):
        value = values[name]
        if value is None:
            if h5a.exists(file.id, name.encode()):
                yield f"the attribute {name} is not one text or number of at most {MOST_TEXT} bytes"
        elif name in TEXTS and not isinstance(value, str):
            yield f"the attribute {name} is not a text"
        elif name == "complete" and not isinstance(value, bool):
            yield "the attribute complete is neither true nor false"
        elif name in NESTED:
            try:
                parse_nested(name, value)
            except ValueError as error:
                yield f"the attribute {name} {error}"
    if values["schema"] and values["schema"] not in (SCHEMA, SCHEMA_OF_CROPS):
        yield (
            f"it has the schema {str(values['schema'])[:50]!r}, which a newer version of vswin-extract wrote; "
            f"this one reads {SCHEMA} and {SCHEMA_OF_CROPS}: pip install -U vswin-extract"
        )
