"""`python -m benchmarks`: measure all figures of docs/speed.md. Print them as tables, or write them as JSON."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import Row, describe
from vswin_extract.backbone import find_device
from vswin_extract.network.cpu import has_bf16

PARTS = (
    "forward",
    "decode",
    "end-to-end",
    "feed",
    "films",
    "seeking",
    "workers",
    "start",
    "growth",
    "devices",
    "merging",
    "simulation",
    "scale",
    "model",
    "cores",
    "gpu",
    "gpu-code",
)
USUAL = PARTS[:-2]


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--device", default="auto", show_default=True, help="The device of the network.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write everything to this file, too.")
@click.option("--smoke", is_flag=True, help="Two minutes: T on the CPU only; exit 1 below half of the targets.")
@click.option("--minutes", default=8.0, show_default=True, help="Of gpu: the time for all sections.")
@click.option("--only", default="", help="Of gpu: some sections, for example parity,attention.")
def main(parts: tuple[str, ...], device: str, output: Path | None, smoke: bool, minutes: float, only: str) -> None:
    """Measure PARTS (default: all but those for GPUs) and compare with the tools that people use instead.

    gpu stands alone: it proves the network on a GPU, and exits with 1 if something fails. gpu-code compiles its kernels
    for GPUs, and needs none.
    """
    where = find_device("cpu" if smoke else device)
    if parts == ("gpu",):
        prove_gpu(where, minutes, only, output)
        return
    parts = parts or (PARTS[:4] if smoke else USUAL)
    found: dict[str, list[Row]] = {"machine": [describe(where)]}
    show("machine", found["machine"])
    arguments: dict[str, tuple[object, ...]] = {
        "forward": (where, smoke),
        "decode": (smoke,),
        "feed": (smoke,),
        "films": (smoke,),
        "workers": (smoke,),
        "seeking": (smoke,),
        "end-to-end": (where, smoke),
        "start": (where,),
        "growth": (where,),
    }
    for part in parts:
        found[part] = measure_of(part)(*arguments.get(part, ()))
        show(part, found[part])
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")
    if smoke and (problems := find_problems(found)):
        sys.exit("\n".join(problems))


def measure_of(part: str) -> Callable[..., list[Row]]:
    """Return the function that measures a part. Its module is loaded now: some need packages that others do not."""
    elsewhere = {"start": "end_to_end", "cores": "model", "gpu-code": "gpu.code"}
    module = import_module("benchmarks." + elsewhere.get(part, part.replace("-", "_")))
    measure: Callable[..., list[Row]] = getattr(module, part.replace("-", "_"))
    return measure


def prove_gpu(device: torch.device, minutes: float, only: str, output: Path | None) -> None:
    """Run the sections of `benchmarks.gpu`. Exit with 1 if something failed."""
    from benchmarks.gpu.proof import SHARES, has_failed, prove

    names = [name for name in only.split(",") if name]
    if unknown := sorted(set(names) - set(SHARES)):
        raise click.BadParameter(f"there is no section {', '.join(unknown)}; sections are {', '.join(SHARES)}")
    with TemporaryDirectory() as folder:
        found = prove(device, minutes, names, output, Path(folder))
    sys.exit(has_failed(found))


def show(part: str, rows: list[Row]) -> None:
    """Print the rows of a part as a table."""
    table = Table(*rows[0], title=part, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


MOST_PER_CLIP = 3.0
"""Processor milliseconds of a worker for each clip, with a network that costs nothing."""


def find_problems(found: dict[str, list[Row]]) -> list[str]:
    """Return a sentence for each figure that is below half of its target, or not accurate enough."""
    from benchmarks.feed import BARE, OURS

    problems = []
    for row in found.get("forward", []):
        fast = "default" in row["what"]
        if not row["what"].startswith("ours"):
            continue
        floor = 2.5 if fast and has_bf16() else 0.9
        if row["x torchvision fp32"] < floor:
            problems.append(f"{row['what']}: {row['x torchvision fp32']:.2f} x torchvision fp32, less than {floor}")
        if row["cosine"] < 0.9995 or row["relative L2"] > (1.5e-2 if fast else 1e-5):
            problems.append(f"{row['what']}: relative L2 {row['relative L2']:.1e}, cosine {row['cosine']:.6f}")
    feeding = found.get("feed", [])
    costs = {row["what"]: row["ms/frame"] for row in feeding if "ms/frame" in row}
    problems += [
        f"{row['what']}: {row['ms/clip']:.2f} ms, more than {MOST_PER_CLIP}"
        for row in feeding
        if row.get("ms/clip", 0.0) > MOST_PER_CLIP
    ]
    if costs and costs[OURS] > 2 * costs[BARE] + 0.3:
        problems.append(f"{OURS} costs {costs[OURS]:.2f} ms a frame, where {BARE} costs {costs[BARE]:.2f}")
    for row in found.get("end-to-end", []):
        floor = 2.0 if has_bf16() else 0.9
        if row["ratio"] < floor:
            problems.append(f"end to end: {row['ratio']:.2f} x the usual script, less than {floor}")
        if row["relative L2"] > 2e-2:
            problems.append(f"end to end: relative L2 {row['relative L2']:.1e} from the usual script's features")
    return problems


if __name__ == "__main__":
    main()
