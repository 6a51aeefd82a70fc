"""What weights are, and whether they are what they should be, on this machine."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from vswin_extract.backbone import Backbone
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.files import file_sha256
from vswin_extract.network.variants import Variant
from vswin_extract.weights import golden
from vswin_extract.weights.cache import cached_file, check_hash, find_weights
from vswin_extract.weights.checkpoints import Checkpoint
from vswin_extract.weights.load import load_checkpoint, read_checkpoint
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED, Published, class_names, find_by_sha256, manifest

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and what to do where it is not ok."""

    what: str
    state: State
    found: str
    advice: str = ""


def facts(name_or_file: str) -> dict[str, Any]:
    """What is known of weights: of published ones that are not in the cache, what the manifest says. What is not known
    is None. Raises what `load` does."""
    row = manifest().get(name_or_file)
    if row is not None and not cached_file(row).is_file():
        return {
            **_published(row), "name": row.name, "file": None, "variant": row.variant, "window": None,
            "parameters": None, "num_classes": row.classes, "classes": list(class_names(row.dataset, row.classes)),
            "recipe": asdict(row.recipe), "licence": row.license, "source": row.url, "sha256": row.sha256 or None,
            "layout": row.layout, "notes": [row.note] if row.note else [],
        }  # fmt: skip
    path = find_weights(name_or_file)
    name, checkpoint = load_checkpoint(name_or_file)
    row = manifest().get(name)
    nothing = dict.fromkeys(("dataset", "accuracy", "views"))
    return {
        **(_published(row) if row else nothing),
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


def verify(name_or_file: str, record: bool = False) -> Iterator[Check]:
    """Check weights one thing after another, as far as it goes: their hash, that they fit their variant exactly, that
    all values are finite, and golden features on the processor in float32: of their variant, which tries the code, and
    of these weights, which `record` stores where nobody has done so yet.

    Raises UsageError and WeightsError where there are no such weights, OSError where nothing can be recorded.
    """
    path = find_weights(name_or_file)
    sha256 = file_sha256(path)
    row = manifest().get(name_or_file) or find_by_sha256(sha256)
    if row is not None:
        try:
            yield Check("sha256", "ok", check_hash(sha256, row).removeprefix("sha256 "))
        except WeightsError as error:
            yield Check("sha256", "failed", str(error))
            return
    try:
        checkpoint = read_checkpoint(path)
    except WeightsError as error:
        yield Check("fit", "failed", str(error))
        return
    if row is None:
        yield _own_hash(name_or_file, checkpoint)
    values = sum(value.numel() for value in checkpoint.state.values())
    window = "x".join(map(str, checkpoint.variant.window))
    yield Check(
        "fit", "ok", f"variant {checkpoint.variant.name}, window {window}, {values:,} parameters, no tensor more"
    )

    broken = [name for name, value in checkpoint.state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        yield Check("finite", "failed", f"{', '.join(broken[:3])}{more} hold NaN or infinity", "get the file again")
        return
    yield Check("finite", "ok", "all values are finite")

    yield compare_variant(checkpoint.variant, torch.device("cpu"), "fp32")
    complete = replace(checkpoint, recipe=checkpoint.recipe or (row.recipe if row else Recipe()))
    yield _compare(name_or_file, complete, record)


def compare_variant(variant: Variant, device: torch.device, precision: str) -> Check:
    """Compute a variant with drawn weights, and compare with what is stored."""
    what = f"golden features, drawn {variant.name}"
    expected = golden.of_variant(variant)
    if expected is None:
        return Check(what, "warning", f"none are stored for window {'x'.join(map(str, variant.window))}")
    backbone = Backbone(f"drawn {variant.name}", golden.drawn_checkpoint(variant), device, precision)
    return _judge(what, golden_error(backbone, expected), precision, "the code computes something else here")


def golden_error(backbone: Backbone, values: golden.GoldenValues) -> float:
    """Relative L2 error of what a model gives for the clip. Raises what computing raises."""
    embedding = backbone(golden.golden_clip()).embedding
    if embedding is None:
        raise UsageError(f"{backbone.name} gives no embedding")
    expected = np.asarray(values)
    found = embedding[0, : len(values)].cpu().double().numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _compare(name: str, checkpoint: Checkpoint, record: bool) -> Check:
    what = "golden features"
    expected = golden.of_weights(checkpoint.sha256)
    if expected is None and not record:
        advice = f"once you trust this file and this machine: vswin weights verify {name} --record"
        return Check(what, "warning", "nobody has computed them for these weights yet", advice)
    if expected is None or (record and name == BUNDLED):
        golden.record_values(name, checkpoint)
        expected = golden.of_weights(checkpoint.sha256) or ()
        what += ", recorded"
    backbone = Backbone(name, checkpoint, torch.device("cpu"), "fp32")
    return _judge(what, golden_error(backbone, expected), "fp32", "these weights gave other features when recorded")


def _judge(what: str, error: float, precision: str, otherwise: str) -> Check:
    limit = golden.TOLERANCE[precision]
    said = f"relative error {error:.1e} in {precision} (at most {limit:.0e})"
    if error <= limit:  # not so for NaN
        return Check(what, "ok", said)
    return Check(what, "failed", said, f"{otherwise}: please report this, with the output of vswin doctor")


def _own_hash(name: str, checkpoint: Checkpoint) -> Check:
    """Of weights that the manifest does not know."""
    sha256 = checkpoint.sha256
    if name == BUNDLED:
        if golden.of_weights(sha256) is None:
            return Check("sha256", "warning", f"{sha256}: golden.json is of another file", "install the package again")
        return Check("sha256", "ok", f"{sha256}: the bundled weights")
    if checkpoint.layout == "vswin-extract" and checkpoint.recipe is not None:
        return Check("sha256", "ok", f"{sha256}; the tensors have the sha256 that they were written with")
    return Check("sha256", "warning", f"{sha256}: no published weights have it, so there is nothing to compare it with")
