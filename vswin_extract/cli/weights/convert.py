"""`vswin weights convert, inflate`: make weights of other files."""

from typing import TYPE_CHECKING, Any

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.console import note
from vswin_extract.cli.download import fetch_weights
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import beside, ema_option, output_option, together
from vswin_extract.formatting import human_bytes, name_some

if TYPE_CHECKING:
    from pathlib import Path

    from vswin_extract.weights.recipe import Recipe

variant_option = click.option(
    "--variant", metavar="T|S|B|L", help="Size of the network, instead of the one that the shapes tell."
)
replace_option = click.option("--overwrite", is_flag=True, help="Replace OUT.safetensors if it is there.")
recipe_options = together(
    click.option("--clip-len", type=int, metavar="FRAMES", help="Frames of a clip."),
    click.option("--frame-interval", type=int, metavar="FRAMES", help="From one frame of a clip to the next."),
    click.option("--size", type=int, metavar="PIXELS", help="Side of the square crop."),
    click.option(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="Short side before the crop.  [default: as before, in proportion to --size]",
    ),
    click.option("--mean", type=float, nargs=3, metavar="R G B", help="Mean of the pixels, on 0 to 255."),
    click.option("--std", type=float, nargs=3, metavar="R G B", help="Their standard deviation."),
)
"""What the weights were trained with, where the checkpoint does not say it. The file then does."""


@command(
    "vswin weights convert mine.pth",
    "vswin weights convert mine.pth -o mine.safetensors --clip-len 16 --size 160",
    headings=dict.fromkeys(("clip_len", "frame_interval", "size", "resize", "mean", "std"), "Recipe"),
    short_help="Write a checkpoint as safetensors, with its recipe.",
)
@click.argument("source", metavar="NAME|FILE", shell_complete=weights_names)
@click.argument("target", type=click.Path(dir_okay=False), required=False, metavar="")
@output_option(
    "OUT.safetensors",
    "The file to write.  [default: as the file, or the name, but .safetensors, or -converted.safetensors]",
)
@variant_option
@ema_option()
@replace_option
@click.option("--half", is_flag=True, help="Store 16-bit floats: half the size, features equal to about 1e-3.")
@recipe_options
@reports_errors
def convert_command(
    source: str,
    target: str | None,
    output: str | None,
    variant: str | None,
    ema: bool,
    overwrite: bool,
    half: bool,
    **recipe: Any,
) -> None:
    """Write a checkpoint of any published layout as safetensors: quick to load, no pickle inside, and with the recipe
    that runs then use."""
    from vswin_extract.errors import WeightsError
    from vswin_extract.weights.checkpoints import save_checkpoint
    from vswin_extract.weights.fit import not_finite
    from vswin_extract.weights.load import load_checkpoint
    from vswin_extract.weights.recipe import Recipe

    ending = "-converted.safetensors" if source.endswith(".safetensors") else ".safetensors"
    target = output or target or beside(source, ending)
    path = check_target(target, source, overwrite)
    fetch_weights(source)
    name, checkpoint = load_checkpoint(source, variant and variant.lower(), ema)
    state = {key: tensor.half() for key, tensor in checkpoint.state.items()} if half else checkpoint.state
    if half and (too_large := not_finite(state)):
        raise WeightsError(f"{name_some(too_large)} of {source} do not fit 16-bit floats; leave out --half")
    kept = changed_recipe(checkpoint.recipe or Recipe(), **recipe)
    save_checkpoint(
        path,
        state,
        checkpoint.variant,
        kept,
        checkpoint.classes,
        source=checkpoint.source or f"{name} {checkpoint.sha256.partition('+')[2]}".rstrip(),
        license=checkpoint.license,
    )
    for text in checkpoint.notes:
        note(text)
    click.echo(
        f"{target}: variant {checkpoint.variant.name}, window {'x'.join(map(str, checkpoint.variant.window))}, "
        f"{checkpoint.num_classes} classes, {human_bytes(path.stat().st_size)}"
    )


@command(
    "vswin weights inflate swin_tiny.pth",
    "vswin weights inflate swin_base.pth -o b.safetensors --window 16x7x7",
    short_help="Make 3D weights of a 2D Swin.",
)
@click.argument("source", metavar="2D.pth")
@output_option("OUT.safetensors", "The file to write.  [default: as the 2D file, but -3d.safetensors]")
@variant_option
@ema_option()
@click.option(
    "--window", default="8x7x7", show_default=True, metavar="TxHxW", help="Window in tokens: frames, rows, columns."
)
@replace_option
@reports_errors
def inflate_command(
    source: str, output: str | None, variant: str | None, ema: bool, window: str, overwrite: bool
) -> None:
    """Make a Video Swin of a 2D Swin checkpoint, of Microsoft's or timm's layout, and check it on a still clip: the
    features of every stage must be the 2D network's at every time step."""
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.weights.checkpoints import save_checkpoint
    from vswin_extract.weights.inflation import TOLERANCE, check_still, resizing_difference
    from vswin_extract.weights.layouts import LAYOUTS_2D
    from vswin_extract.weights.load import read_checkpoint
    from vswin_extract.weights.recipe import Recipe

    output = output or beside(source, "-3d.safetensors")
    path = check_target(output, source, overwrite)
    checkpoint = read_checkpoint(Path(source), variant and variant.lower(), parse_window(window), ema=ema)
    if checkpoint.layout not in LAYOUTS_2D:
        raise UsageError(
            f"{source} is a 3D checkpoint already ({checkpoint.layout}), so it cannot be inflated; "
            f"use it as it is, or: vswin weights convert {source} -o {output}"
        )
    for text in checkpoint.notes:
        note(text)
    errors = check_still(checkpoint)
    save_checkpoint(
        path,
        checkpoint.state,
        checkpoint.variant,
        Recipe(),
        source=f"{Path(source).name} {checkpoint.sha256.partition('+')[2]}".rstrip() + ", inflated",
    )
    resized = resizing_difference(checkpoint)
    of = "features of the 2D network with the resized window" if resized else "2D features"
    click.echo(
        f"a still clip gives the {of} at every time step: relative error {by_stage(errors)} (at most {TOLERANCE:.0e})"
    )
    if resized:
        click.echo(f"the 2D network with its own window gives other features: relative difference {by_stage(resized)}")
    click.echo(f"{output}: variant {checkpoint.variant.name}, window {window}, {human_bytes(path.stat().st_size)}")


def changed_recipe(recipe: "Recipe", **given: Any) -> "Recipe":
    """Return a recipe with the values that were given instead of its own. Raises UsageError."""
    from dataclasses import replace

    from vswin_extract.errors import UsageError

    changes = {name: value for name, value in given.items() if value is not None}
    if "size" in changes and "resize" not in changes:
        changes["resize"] = round(recipe.resize * changes["size"] / recipe.size)
    try:
        changed = replace(recipe, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if changed.resize < changed.size:
        raise UsageError(f"--resize {changed.resize} is smaller than the crop, --size {changed.size}")
    return changed


def by_stage(errors: dict[int, float]) -> str:
    return ", ".join(f"stage {stage} {error:.0e}" for stage, error in errors.items())


def check_target(target: str, source: str, overwrite: bool) -> "Path":
    """Return the file to write: of a link, its target. Raises UsageError unless weights can be written to it: it is not
    there, or may be overwritten, and is not the file that they are made of."""
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.files import FileKind, Target
    from vswin_extract.weights.cache import find_weights

    if not target.endswith(".safetensors"):
        raise UsageError(f"{target} must end in .safetensors, as {beside(target, '.safetensors')}")
    return Target(Path(target), FileKind("empty", ()), lambda: [find_weights(source)], overwrite).check()


def parse_window(text: str) -> tuple[int, int, int]:
    """Return the sides of a window that is written like 8x7x7. Raises UsageError."""
    import re

    from vswin_extract.errors import UsageError

    sides = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)x([1-9]\d?)", text)
    if sides is None:
        raise UsageError(f"--window must be like 8x7x7, not {text!r}")
    return int(sides[1]), int(sides[2]), int(sides[3])
