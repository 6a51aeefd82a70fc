"""The network alone: ours against the peer's, speed beside accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import usual
from benchmarks.forward import embedding, moving_clip
from benchmarks.gpu.peer import peer_model
from benchmarks.gpu.proof import Section, say
from benchmarks.gpu.timing import peak, seconds_of
from vswin_extract import Backbone, load_model
from vswin_extract.errors import is_out_of_memory
from vswin_extract.network.variants import VARIANTS, Variant

BATCHES = (8, 16, 32)
ORDER = ("t", "b", "s", "l")
COMPILED = ("t", "b")
CLIP = (32, 224, 224)
SMALL_CLIP = (4, 32, 32)
COMPILE_SECONDS = {"t": 45, "b": 70}
"""How long compiling may take, on a guess; it is not begun later."""

Embed = Callable[[Tensor], Tensor]
"""uint8 clips on the device to embeddings, float32."""


@dataclass(frozen=True)
class Way:
    """One way to compute embeddings. `batches`: the batches to try. `dtype`: of its matrix products."""

    name: str
    embed: Embed
    dtype: torch.dtype
    batches: tuple[int, ...]


def forward(section: Section) -> None:
    device, small = section.device, section.small
    peaks = {dtype: peak(device, dtype, small) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, flops in peaks.items():
        section.add("peak", {"matrix product": str(dtype), "side": 256 if small else 8192, "TFLOP/s": flops / 1e12})
    for letter in ORDER[:1] if small else ORDER:
        with section.guarded(letter.upper()):
            variant_forward(section, VARIANTS[letter], peaks)
        section.free()


def variant_forward(section: Section, variant: Variant, peaks: dict[torch.dtype, float]) -> None:
    name = variant.name.upper()
    if not section.allows(name, 25):
        return
    model, origin = peer_model(variant)
    path = section.folder / f"{variant.name}.pth"
    torch.save(model.state_dict(), path)
    model = model.to(section.device)
    batches = (1, 2) if section.small else BATCHES
    inputs = [clips_of(max(batches), section.small, seed).to(section.device) for seed in (1, 2)]
    first = inputs[0][: batches[0]]
    exact = peer_way(model, "peer fp32", None, batches, section.device)
    expected = exact.embed(first).double()
    row = {"variant": name, "peer": origin}
    rates = measure(section, row, exact, inputs, expected, variant, peaks)
    autocast = peer_way(model, "peer bf16 autocast", torch.bfloat16, batches, section.device)
    rates |= measure(section, row, autocast, inputs, expected, variant, peaks)
    for precision in ("fp32", "bf16"):
        backbone = load_model(path, device=str(section.device), precision=precision)
        for note in backbone.notes:
            say(f"NOTE {name} {precision}: {note}")
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        way = Way(f"ours {precision}", partial(embedding, backbone), dtype, batches)
        rates |= measure(section, row, way, inputs, expected, variant, peaks)
    if section.small:
        section.skip(f"{name} compiled", "it takes minutes on a CPU")
    elif variant.name in COMPILED:
        compiled(section, variant, backbone, model, inputs, expected, row, rates, peaks)
    ratios(section, name, rates)
    path.unlink()


def compiled(
    section: Section, variant: Variant, backbone: Backbone, model: nn.Module, inputs: list[Tensor], expected: Tensor,
    row: dict[str, str], rates: dict[str, tuple[float, int]], peaks: dict[torch.dtype, float],
) -> None:  # fmt: skip
    """Measure both compiled, each at the batch that was best without."""
    seconds = COMPILE_SECONDS[variant.name]
    name = variant.name.upper()
    if section.allows(f"{name}: ours bf16 compiled", seconds):
        batch = rates["ours bf16"][1]
        backbone.compile_for(inputs[0][:batch])
        way = Way("ours bf16 compiled", partial(embedding, backbone), torch.bfloat16, (batch,))
        rates |= measure(section, row, way, inputs, expected, variant, peaks)
    if section.allows(f"{name}: peer bf16 compiled", seconds):
        batch = rates["peer bf16 autocast"][1]
        way = peer_way(model, "peer bf16 compiled", torch.bfloat16, (batch,), section.device, compile=True)
        rates |= measure(section, row, way, inputs, expected, variant, peaks)
        torch.compiler.reset()


def peer_way(
    model: nn.Module, name: str, autocast: torch.dtype | None, batches: tuple[int, ...], device: torch.device,
    compile: bool = False,
) -> Way:  # fmt: skip
    """Return the peer, which gets its pixels as normalised float32, as its presets make them."""
    mean, std = (torch.tensor(of_rgb, device=device).view(3, 1, 1, 1) for of_rgb in (usual.MEAN, usual.STD))
    embed = torch.compile(usual.embed, dynamic=False) if compile else usual.embed

    def call(clips: Tensor) -> Tensor:
        floats = (clips.permute(0, 4, 1, 2, 3) / 255 - mean) / std
        with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            return embed(model, floats).float()

    return Way(name, call, autocast or torch.float32, batches)


def measure(
    section: Section, row: dict[str, str], way: Way, inputs: list[Tensor], expected: Tensor, variant: Variant,
    peaks: dict[torch.dtype, float],
) -> dict[str, tuple[float, int]]:  # fmt: skip
    """Add a row with the best batch of one way. Return its clips/s and this batch by its name."""
    row = {**row, "what": way.name}
    rates: dict[int, float] = {}
    for batch in way.batches:
        try:
            calls = [partial(way.embed, clips[:batch]) for clips in inputs]
            rates[batch] = batch / seconds_of(calls, section.device, 0.8, 3)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            section.skip(f"{row['variant']}: {way.name}, batch {batch}", "out of memory")
            torch.cuda.empty_cache()
    best = max(rates, key=lambda batch: rates[batch])
    batch = max(len(expected), way.batches[0])
    found = way.embed(inputs[0][:batch])[: len(expected)].double()
    section.add(
        "clips/s",
        {
            **row,
            **({f"batch {batch}": rate for batch, rate in rates.items()}),
            "best": rates[best],
            "share of peak": rates[best] * flop(variant, SMALL_CLIP if section.small else CLIP) / peaks[way.dtype],
            "relative L2": float((found - expected).norm() / expected.norm()),
            "cosine": float(torch.cosine_similarity(found, expected).min()),
        },
    )
    return {way.name: (rates[best], best)}


def ratios(section: Section, name: str, rates: dict[str, tuple[float, int]]) -> None:
    """Add our rates over the peer's."""
    for ours, (rate, _) in rates.items():
        if ours.startswith("ours"):
            against = {f"x {peer}": rate / other for peer, (other, _) in rates.items() if peer.startswith("peer")}
            section.add("ratios", {"variant": name, "what": ours, **against})


def flop(variant: Variant, clip: tuple[int, int, int]) -> float:
    """Return the operations of a clip: two for each multiply and add of a matrix product."""
    t, h, w = clip[0] // 2, clip[1] // 4, clip[2] // 4
    total = 2.0 * t * h * w * 96 * variant.embed_dim
    for stage in (1, 2, 3, 4):
        tokens, width = t * h * w, variant.channels(stage)
        within = min(t, variant.window[0]) * min(h, variant.window[1]) * min(w, variant.window[2])
        total += variant.depths[stage - 1] * tokens * (24.0 * width**2 + 4.0 * within * width)
        h, w = -(-h // 2), -(-w // 2)
        if stage < 4:
            total += 16.0 * t * h * w * width**2
    return total


def clips_of(count: int, small: bool, seed: int) -> Tensor:
    return moving_clip(count, SMALL_CLIP if small else CLIP, seed)
