"""`python -m benchmarks`: measure all figures of docs/speed.md. Print them as tables, or write them as JSON."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.decode import decode
from benchmarks.devices import devices
from benchmarks.end_to_end import end_to_end, start
from benchmarks.feed import BARE, OURS, feed
from benchmarks.forward import forward
from benchmarks.growth import growth
from benchmarks.machine import Row, describe
from benchmarks.merging import merging
from benchmarks.model import model
from benchmarks.scale import scale
from benchmarks.simulation import simulation
from vswin_extract.backbone import find_device
from vswin_extract.network.cpu import has_bf16

PARTS = (
    "forward",
    "decode",
    "end-to-end",
    "feed",
    "start",
    "growth",
    "devices",
    "merging",
    "simulation",
    "scale",
    "model",
)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--device", default="auto", show_default=True, help="The device of the network.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write everything to this file, too.")
@click.option("--smoke", is_flag=True, help="Two minutes: T on the CPU only; exit 1 below half of the targets.")
def main(parts: tuple[str, ...], device: str, output: Path | None, smoke: bool) -> None:
    """Measure PARTS (default: all) and compare with the tools that people use instead."""
    where = find_device("cpu" if smoke else device)
    parts = parts or (PARTS[:4] if smoke else PARTS)
    found: dict[str, list[Row]] = {"machine": [describe(where)]}
    show("machine", found["machine"])
    measures: dict[str, Callable[[], list[Row]]] = {
        "forward": lambda: forward(where, smoke),
        "decode": lambda: decode(smoke),
        "feed": lambda: feed(smoke),
        "end-to-end": lambda: end_to_end(where, smoke),
        "start": lambda: start(where),
        "growth": lambda: growth(where),
        "devices": devices,
        "merging": merging,
        "simulation": simulation,
        "scale": scale,
        "model": model,
    }
    for part in parts:
        found[part] = measures[part]()
        show(part, found[part])
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")
    if smoke and (problems := find_problems(found)):
        sys.exit("\n".join(problems))


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
