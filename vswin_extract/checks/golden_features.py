"""The golden features: what the network gives here for the drawn clip, compared with what is stored."""

import numpy as np
import torch

from vswin_extract.backbone import Backbone
from vswin_extract.checks import golden
from vswin_extract.checks.result import Check
from vswin_extract.errors import UsageError
from vswin_extract.network.variants import Variant


def compare_variant(variant: Variant, device: torch.device, precision: str) -> Check:
    """Compute a variant with drawn weights on a device, and compare the features with the stored ones."""
    what = f"golden features, drawn {variant.name}"
    expected = golden.of_variant(variant)
    if expected is None:
        return Check(what, "warning", f"none are stored for window {'x'.join(map(str, variant.window))}")
    backbone = Backbone(f"drawn {variant.name}", golden.drawn_checkpoint(variant), device, precision)
    return judge(what, golden_error(backbone, expected), precision, "the code computes something else here")


def golden_error(backbone: Backbone, values: golden.GoldenValues) -> float:
    """Return the relative L2 error of a model's features of the drawn clip. Raises what computing them raises."""
    embedding = backbone(golden.golden_clip()).embedding
    if embedding is None:
        raise UsageError(f"{backbone.name} gives no embedding")
    expected = np.asarray(values)
    found = embedding[0, : len(values)].cpu().double().numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def judge(what: str, error: float, precision: str, reason: str) -> Check:
    """Return a check that fails if a relative error is larger than a precision allows. `reason`: why it may be."""
    limit = golden.TOLERANCE[precision]
    found = f"relative error {error:.1e} in {precision} (at most {limit:.0e})"
    if error <= limit:  # False if the error is NaN
        return Check(what, "ok", found)
    return Check(what, "failed", found, f"{reason}: please report this, with the output of vswin doctor")
