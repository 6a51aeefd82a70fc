"""The peer's network, torchvision's `swin3d_*`: that of torchvision, or, where it is missing, one of its definition."""

from collections.abc import Callable

from torch import nn

from benchmarks import usual
from benchmarks.gpu import rebuilt
from vswin_extract.network.variants import VARIANTS, Variant


def peer_model(variant: Variant) -> tuple[nn.Module, str]:
    """Return the network with drawn weights, and which one it is."""
    made = "torchvision"
    try:
        make: Callable[..., nn.Module] = usual.torchvision().models.video.swin_transformer.SwinTransformer3d
    except ImportError:
        make, made = rebuilt.SwinTransformer3d, "rebuilt in plain PyTorch"
    model = make(
        patch_size=[2, 4, 4],
        embed_dim=variant.embed_dim,
        depths=list(variant.depths),
        num_heads=list(variant.heads),
        window_size=list(variant.window),
        num_classes=400,
    )
    usual.draw_weights(model)
    if variant == VARIANTS["l"]:
        made += "'s class with the sizes of L"
    return model.eval().requires_grad_(False), made
