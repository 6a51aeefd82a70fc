"""What is known of weights, whether they are what they should be, and whether the files in the cache are complete."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vswin_extract.backbone import Backbone
from vswin_extract.checks import golden
from vswin_extract.checks.golden_features import compare_variant, golden_error, judge
from vswin_extract.checks.result import Check
from vswin_extract.errors import WeightsError
from vswin_extract.formatting import name_some
from vswin_extract.system import home_directory
from vswin_extract.weights.cache import (
    DIRECTORIES,
    cache_dirs,
    cached_file,
    check_hash,
    find_weights,
    is_cached,
    standard_name,
    writable_cache,
)
from vswin_extract.weights.checkpoints import Checkpoint
from vswin_extract.weights.fit import not_finite
from vswin_extract.weights.load import load_checkpoint, parse_checkpoint, read_file
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED, SIZE_TOLERANCE, Published, class_names, find_by_sha256, manifest


def describe_weights(name_or_file: str, ema: bool = False) -> dict[str, Any]:
    """Return what is known of weights; what is not known is None. Of published weights that are not in the cache, it is
    what the manifest says. `ema`: of the averaged weights in the file. Raises what `load` raises."""
    name_or_file = standard_name(name_or_file)
    row = manifest().get(name_or_file)
    if row is not None and not is_cached(row):
        return {
            **_published(row), "name": row.name, "file": None, "variant": row.variant, "window": None,
            "parameters": None, "num_classes": row.classes, "classes": list(class_names(row.dataset, row.classes)),
            "recipe": asdict(row.recipe), "licence": row.license, "source": row.url, "sha256": row.sha256 or None,
            "layout": row.layout, "notes": [row.note] if row.note else [],
        }  # fmt: skip
    path = find_weights(name_or_file)
    name, checkpoint = load_checkpoint(name_or_file, ema=ema)
    row = manifest().get(name)
    unknown = dict.fromkeys(("dataset", "accuracy", "views"))
    return {
        **(_published(row) if row else unknown),
        "name": name,
        "file": str(path),
        "variant": checkpoint.variant.name,
        "window": checkpoint.variant.window,
        "parameters": sum(value.numel() for value in checkpoint.state.values()),
        "num_classes": checkpoint.num_classes,
        "classes": list(checkpoint.classes),
        "recipe": asdict(checkpoint.recipe) if checkpoint.recipe else None,
        "licence": checkpoint.license or None,
        "source": checkpoint.source or None,
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "notes": [*checkpoint.notes, *([row.note] if row and row.note else [])],
    }


def _published(row: Published) -> dict[str, Any]:
    return {"dataset": row.dataset, "accuracy": row.accuracy, "views": row.views}


def verify_weights(name_or_file: str, record: bool = False, ema: bool = False) -> Iterator[Check]:
    """Yield the checks of weights, until one makes the next impossible: their sha256; that they fit their variant
    exactly, also in their class names; that all values are finite; golden features on the CPU in float32, first of
    their variant with drawn weights, which checks the code, then of these weights. `record` stores the latter if there
    are none yet. `ema`: verify the averaged weights in the file.

    Raises UsageError or WeightsError if there are no such weights, OSError if the features cannot be stored.
    """
    name_or_file = standard_name(name_or_file)
    path = find_weights(name_or_file)
    try:
        file, content = read_file(path)
    except WeightsError as error:
        yield Check("fit", "failed", str(error))
        return
    row = manifest().get(name_or_file) or find_by_sha256(file.sha256)
    if row is not None:
        try:
            yield Check("sha256", "ok", check_hash(file.sha256, row).removeprefix("sha256 "))
        except WeightsError as error:
            yield Check("sha256", "failed", str(error))
            return
    try:
        checkpoint = parse_checkpoint(file, content, ema=ema, finite=False)
    except WeightsError as error:
        yield Check("fit", "failed", str(error))
        return
    if row is None:
        yield _own_hash(name_or_file, checkpoint)
    doubtful = [repr(name) for name, times in Counter(checkpoint.classes).items() if times > 1 or not name.strip()]
    if doubtful:
        yield Check("classes", "warning", f"names that are empty, or of several classes: {name_some(doubtful)}")
    values = sum(value.numel() for value in checkpoint.state.values())
    window = "x".join(map(str, checkpoint.variant.window))
    fit = f"variant {checkpoint.variant.name}, window {window}, {values:,} parameters, no tensor left over"
    yield Check("fit", "ok", fit)

    if broken := not_finite(checkpoint.state):
        yield Check("finite", "failed", f"{name_some(broken)} hold NaN or infinity", "get the file again")
        return
    yield Check("finite", "ok", "all values are finite")

    yield compare_variant(checkpoint.variant, torch.device("cpu"), "fp32")
    complete = replace(checkpoint, recipe=checkpoint.recipe or (row.recipe if row else Recipe()))
    yield _compare_weights(name_or_file, complete, record)


def _compare_weights(name: str, checkpoint: Checkpoint, record: bool) -> Check:
    """Compute the golden features of these weights, and compare them with the stored ones."""
    what = "golden features"
    expected = golden.of_weights(checkpoint.sha256)
    if expected is None and not record:
        options = "--ema --record" if "+" in checkpoint.sha256 else "--record"
        advice = f"once you trust this file and this machine: vswin weights verify {name} {options}"
        return Check(what, "warning", "nobody has computed them for these weights yet", advice)
    if expected is None or (record and name == BUNDLED):
        golden.record_values(name, checkpoint)
        expected = golden.of_weights(checkpoint.sha256) or ()
        what += ", recorded"
    backbone = Backbone(name, checkpoint, torch.device("cpu"), "fp32")
    return judge(what, golden_error(backbone, expected), "fp32", "these weights gave other features when recorded")


def _own_hash(name: str, checkpoint: Checkpoint) -> Check:
    """Return the check of the sha256 of weights that the manifest does not know."""
    sha256 = checkpoint.sha256
    if name == BUNDLED:
        if golden.of_weights(sha256) is None:
            advice = "install the package again"
            return Check("sha256", "warning", f"{sha256}: golden.json belongs to another file", advice)
        return Check("sha256", "ok", f"{sha256}: the bundled weights")
    if checkpoint.metadata_hashed:
        return Check("sha256", "ok", f"{sha256}; tensors and metadata have the sha256 that they were written with")
    if checkpoint.layout == "vswin-extract" and checkpoint.recipe is not None:
        found = f"{sha256}; the tensors have the sha256 that they were written with, but there is none of the metadata"
        advice = f"an earlier version wrote it; to write it with both: vswin weights convert {name} NEW.safetensors"
        return Check("sha256", "warning", found, advice)
    return Check("sha256", "warning", f"{sha256}: no published weights have it, so there is nothing to compare it with")


def check_cache() -> Iterator[Check]:
    """Yield where the weights cache is, whether it can be written, and each file in it whose size is wrong. Hashing
    would take too long here; `verify_weights` does it."""
    folders = ", ".join(_without_home(folder) for folder in cache_dirs())
    if not folders:
        advice = f"the bundled weights work; to use others, set {DIRECTORIES} to a directory of your own"
        yield Check("weights cache", "warning", "none, because this user has no home directory", advice)
        return
    cached = [row for row in manifest().values() if is_cached(row)]
    found = f"{folders}: {', '.join(row.name for row in cached) or 'empty'}"
    if writable_cache():
        yield Check("weights cache", "ok", found)
    else:
        advice = "its weights can be used; to pull more, add a directory of your own to " + DIRECTORIES
        yield Check("weights cache", "warning", f"{found}; cannot be written", advice)
    for row in cached:
        megabytes = cached_file(row).stat().st_size / 1e6
        if row.megabytes and abs(megabytes - row.megabytes) > SIZE_TOLERANCE * row.megabytes:
            found = f"the file has {megabytes:.1f} MB, but about {row.megabytes:g} MB are published"
            advice = f"delete it and pull it again, or look closer: vswin weights verify {row.name}"
            yield Check(f"weights {row.name}", "failed", found, advice)


def _without_home(path: Path) -> str:
    """Return a path with ~ for the home directory, which has the user's name in it."""
    home = home_directory()
    return str(Path("~") / path.relative_to(home)) if home and path.is_relative_to(home) else str(path)
