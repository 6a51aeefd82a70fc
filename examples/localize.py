"""Find actions in long videos: `python examples/localize.py`.

Untrimmed videos are drawn. Sometimes the camera pans, zooms or rolls, or an object passes; otherwise the camera only
trembles. A small temporal network classifies every clip by nano's features. Consecutive clips of one class are the
segments that it finds. The same network on frame differences is the baseline.
"""

from collections.abc import Sequence
from itertools import pairwise
from tempfile import TemporaryDirectory

import click
import torch
import torch.nn.functional as F
from drawing import Action, untrimmed, write_videos
from textures import HELD_OUT, TRAIN
from torch import Generator, Tensor, nn

import vswin_extract

ACTIONS = ("pan left", "pan right", "zoom in", "roll clockwise", "object right")
SIDE, STRIDE, HALF, OVERLAPS = 112, 8, 4 / 30, (0.3, 0.4, 0.5, 0.6, 0.7)
Found = list[tuple[Action, float]]


def frame_differences(frames: Tensor, times: Tensor) -> Tensor:
    """Return for each clip of `times` (T, 2) how much 8 x 8 parts of the picture change between frames, (T, 64)."""
    change = F.adaptive_avg_pool2d((frames[1:].float() - frames[:-1].float()).abs().mean(-1)[:, None], 8).flatten(1)
    return torch.stack([change[round(30 * begin) : round(30 * end) - 1].mean(0) for begin, end in times.tolist()])


def learned(features: Sequence[Tensor], labels: Sequence[Tensor], seed: int) -> nn.Module:
    """Train three temporal convolutions to classify every clip."""
    torch.manual_seed(seed)
    width, classes = features[0].shape[1], len(ACTIONS) + 1
    layers = [nn.Conv1d(a, b, 3, padding=1) for a, b in ((width, 64), (64, 64), (64, classes))]
    head = nn.Sequential(nn.BatchNorm1d(width), layers[0], nn.ReLU(), nn.Dropout(0.3), layers[1], nn.ReLU(), layers[2])
    adam = torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(60):
        for x, y in zip(features, labels, strict=True):
            adam.zero_grad()
            torch.autograd.backward(F.cross_entropy(head(x.T[None])[0].T, y))
            adam.step()
    return head.eval()


def found(scores: Tensor, times: Tensor) -> Found:
    """Return runs of clips with the same likeliest action, and its mean probability; `scores` (T, actions + 1)."""
    chances, best, middle = scores.softmax(1), scores.argmax(1), times.mean(1).tolist()
    edges = [0, *(best.diff().nonzero()[:, 0] + 1).tolist(), len(best)]
    runs = [(int(best[a]), a, b) for a, b in pairwise(edges) if best[a] < len(ACTIONS)]
    return [((k, middle[a] - HALF, middle[b - 1] + HALF), chances[a:b, k].mean().item()) for k, a, b in runs]


def average_precision(which: int, answers: list[Found], true: list[list[Action]], at: float) -> float:
    """An answer is correct if its tIoU with an action of its kind that no better answer has taken is `at` or more."""
    left = [[each for each in some if each[0] == which] for some in true]
    total, hits = sum(map(len, left)), []
    ranked = [(score, video, each) for video, some in enumerate(answers) for each, score in some if each[0] == which]
    for _, video, (_, begin, end) in sorted(ranked, reverse=True):
        tious = [(min(end, e) - max(begin, b)) / (max(end, e) - min(begin, b)) for _, b, e in left[video]]
        hits.append(max(tious, default=0.0) >= at)
        if hits[-1]:
            del left[video][tious.index(max(tious))]
    return sum(sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit) / total if total else torch.nan


@click.command()
@click.option("--videos", default=12, show_default=True, help="Videos. Two thirds of them are for training.")
@click.option("--seeds", default=1, show_default=True, help="Draws. Their scores are averaged.")
def main(videos: int, seeds: int) -> None:
    """Print mAP at tIoU 0.3 to 0.7 with nano's features and with frame differences."""
    cut, scores = 2 * videos // 3, dict[str, list[Tensor]]()
    for seed in range(seeds):
        generator = Generator().manual_seed(seed)
        drawn = [untrimmed(TRAIN if i < cut else HELD_OUT, ACTIONS, SIDE, generator) for i in range(videos)]
        with TemporaryDirectory() as folder:
            write_videos(folder, {f"{i:03}.mp4": frames for i, (frames, _) in enumerate(drawn)})
            vswin_extract.extract(folder, f"{folder}/out.h5", clip_len=16, stride=STRIDE, size=SIDE, resize=SIDE)
            dataset = vswin_extract.FeatureDataset(f"{folder}/out.h5")
            rows, times = zip(*((item["features"], item["times"]) for item in dataset), strict=True)
        labels = [
            torch.tensor([next((k for k, b, e in some if b <= t < e), len(ACTIONS)) for t in middles.mean(1).tolist()])
            for (_, some), middles in zip(drawn, times, strict=True)
        ]
        differences = [frame_differences(frames, when) for (frames, _), when in zip(drawn, times, strict=True)]
        for name, inputs in (("nano", rows), ("frame differences", differences)):
            true = [actions for _, actions in drawn[cut:]]
            head = learned(inputs[:cut], labels[:cut], seed)
            answers = [found(head(x.T[None])[0].T, t) for x, t in zip(inputs[cut:], times[cut:], strict=True)]
            each = [[average_precision(k, answers, true, at) for k in range(len(ACTIONS))] for at in OVERLAPS]
            scores.setdefault(name, []).append(torch.tensor(each).nanmean(1))
    for name, draws in scores.items():
        by_overlap, by_seed = ((100 * torch.stack(draws)).mean(axis).int().tolist() for axis in (0, 1))
        click.echo(f"{name:17} mAP (%) at tIoU 0.3 to 0.7: {by_overlap}; of each draw: {by_seed}")


if __name__ == "__main__":
    main()
