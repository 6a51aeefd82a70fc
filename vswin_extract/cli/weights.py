"""`vswin weights`: what there is, getting it, converting and checking it."""

import sys
from typing import Any

import click

from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.console import fail, reports_errors, show_checks, stderr, stdout, table
from vswin_extract.formatting import human_bytes, plural, printable

FOREIGN = 10
"""So many files that are not ours are listed at most."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def weights() -> None:
    """List, download, convert and check weights."""


@weights.command("list")
@reports_errors
def list_() -> None:
    """Show the published weights that can be pulled, and which are in the cache."""
    from vswin_extract.weights.registry import BUNDLED, begun, bundled_file, cache_dirs, manifest

    bundled = human_bytes(bundled_file().stat().st_size)
    rows = [(BUNDLED, "drawn clips", "", "", bundled, "Apache-2.0", "yes")]
    for row in manifest().values():
        size = human_bytes(row.megabytes * 1e6) if row.megabytes else "?"
        done, total = begun(row)
        here = "yes" if row.file.is_file() else f"{done / total:.0%}" if total else ""
        top1, top5 = (f"{percent:.1f}" for percent in row.accuracy)
        rows.append((row.name, row.dataset, top1, top5, size, row.license, here))
    out = stdout()
    titles = ("name", "trained on", "top-1", "top-5", "size", "licence", "here")
    out.print(table(rows, titles, right=("top-1", "top-5", "size")))
    views = next(iter(manifest().values())).views
    out.print(f"\nTop-1 and top-5 in percent as published, mostly over {views}. Names begin with the variant.")
    for directory in cache_dirs():
        click.echo(f"Cache: {printable(str(directory))}")


@weights.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=weights_names)
@click.option(
    "--from",
    "source",
    metavar="URL|DIR",
    default="",
    help="A mirror: a directory, or the beginning of an address, that has files of the published names. "
    "Their hashes are checked all the same. [default: $VSWIN_WEIGHTS_MIRROR, or where they were published]",
)
@reports_errors
def pull(names: tuple[str, ...], source: str) -> None:
    """Download published weights into the cache, check their hashes, and print where they are.

    A download that was stopped is continued; one that another process has begun is waited for.
    """
    from tqdm import tqdm

    from vswin_extract.errors import WeightsError
    from vswin_extract.weights.registry import BUNDLED, begun, bundled_file, published
    from vswin_extract.weights.registry import pull as pull_weights

    failed = []
    for name in dict.fromkeys(names):
        if name != BUNDLED:
            published(name)  # raises before anything is downloaded
    for name in dict.fromkeys(names):
        if name == BUNDLED:
            click.echo(bundled_file())
            continue
        there, total = begun(published(name))
        with tqdm(
            desc=name, unit="B", unit_scale=True, initial=there, total=total or None, disable=None, leave=False
        ) as bar:

            def progress(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total or None
                bar.update(done - bar.n)

            def say(sentence: str, name: str = name) -> None:
                tqdm.write(f"{name}: {printable(sentence)}", file=sys.stderr)

            try:
                path, said = pull_weights(name, progress, say, source)
            except WeightsError as error:
                failed.append(str(error))
                continue
            except KeyboardInterrupt:
                bar.close()
                fail("stopped; the same command continues", 130)
        stderr().print(said)
        click.echo(path)
    if failed:
        for message in failed[:-1]:
            click.echo(f"Error: {printable(message)}", err=True)
        raise WeightsError(failed[-1])


@weights.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=weights_names)
@reports_errors
def path(name: str) -> None:
    """Print where the file of weights is; exit code 2 where they have not been pulled."""
    from vswin_extract.weights.registry import find

    click.echo(find(name))


@weights.command()
@click.option("--yes", is_flag=True, help="Remove it; otherwise it is only listed.")
@reports_errors
def prune(yes: bool) -> None:
    """List unfinished downloads in the cache, or remove them.

    Weights stay, and so does what is not known, which is listed: it may be somebody's.
    """
    from vswin_extract.weights import registry as library

    found = library.leftovers()
    size = sum(path.stat().st_size for path in found.unfinished)
    if found.unfinished:
        stdout().print(table([(human_bytes(path.stat().st_size), path) for path in found.unfinished]))
    if yes:
        library.prune(found.unfinished)
    left = "removed" if yes else "to be removed by --yes"
    click.echo(f"{plural(len(found.unfinished), 'unfinished file')}, {human_bytes(size)}, {left}")
    for going in found.going:
        click.echo(f"being downloaded, and left: {printable(going)}")
    for path in found.foreign[:FOREIGN]:
        click.echo(f"not of the published weights, and left: {printable(str(path))}")
    if len(found.foreign) > FOREIGN:
        click.echo(f"and {len(found.foreign) - FOREIGN} more such")


@weights.command()
@click.argument("source", metavar="NAME|FILE", shell_complete=weights_names)
@click.argument("target", type=click.Path(dir_okay=False), metavar="OUT.safetensors")
@click.option("--variant", metavar="T|S|B|L", help="Size of the network, instead of the one that the shapes tell.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.safetensors if it is there.")
@click.option("--half", is_flag=True, help="Store 16-bit floats: half the size, features equal to about 1e-3.")
@reports_errors
def convert(source: str, target: str, variant: str | None, overwrite: bool, half: bool) -> None:
    """Write a checkpoint of any published layout as safetensors: quick to load, and no pickle inside."""
    from pathlib import Path

    from vswin_extract.weights.checkpoints import save
    from vswin_extract.weights.recipe import Recipe
    from vswin_extract.weights.registry import load

    check_target(target, overwrite)
    name, checkpoint = load(source, variant and variant.lower())
    state = {key: tensor.half() for key, tensor in checkpoint.state.items()} if half else checkpoint.state
    save(
        Path(target),
        state,
        checkpoint.variant,
        checkpoint.recipe or Recipe(),
        checkpoint.classes,
        source=checkpoint.source or name,
        license=checkpoint.license,
    )
    for note in checkpoint.notes:
        stderr().print(f"note: {note}")
    click.echo(
        f"{target}: variant {checkpoint.variant.name}, window {'x'.join(map(str, checkpoint.variant.window))}, "
        f"{checkpoint.num_classes} classes, {human_bytes(Path(target).stat().st_size)}"
    )


def check_target(target: str, overwrite: bool) -> None:
    """Raise UsageError unless weights can be written there."""
    from pathlib import Path

    from vswin_extract.errors import UsageError

    if not target.endswith(".safetensors"):
        raise UsageError(f"{target} must end in .safetensors")
    if Path(target).exists() and not overwrite:
        raise UsageError(f"{target} exists; add --overwrite to replace it")
    if not Path(target).absolute().parent.is_dir():
        raise UsageError(f"no directory {Path(target).absolute().parent} to write into")


@weights.command()
@click.argument("source", metavar="2D.pth")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="OUT.safetensors",
    help="The file to write.",
)
@click.option("--variant", metavar="T|S|B|L", help="Size of the network, instead of the one that the shapes tell.")
@click.option(
    "--window", default="8x7x7", show_default=True, metavar="TxHxW", help="Window in tokens: frames, rows, columns."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.safetensors if it is there.")
@reports_errors
def inflate(source: str, output: str, variant: str | None, window: str, overwrite: bool) -> None:
    """Make a Video Swin of a 2D Swin checkpoint, of Microsoft's or timm's layout, and check it on a still clip: the
    features of every stage must be the 2D network's at every time step."""
    import re
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.weights.checkpoints import FLAT, read, save
    from vswin_extract.weights.inflation import TOLERANCE, check_still
    from vswin_extract.weights.recipe import Recipe

    check_target(output, overwrite)
    sides = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)x([1-9]\d?)", window)
    if sides is None:
        raise UsageError(f"--window must be like 8x7x7, not {window!r}")
    checkpoint = read(Path(source), variant and variant.lower(), (int(sides[1]), int(sides[2]), int(sides[3])))
    if checkpoint.layout not in FLAT:
        raise UsageError(
            f"{source} is a 3D checkpoint already ({checkpoint.layout}): there is nothing to inflate; "
            f"use it as it is, or: vswin weights convert {source} {output}"
        )
    for note in checkpoint.notes:
        stderr().print(f"note: {note}")
    errors = check_still(checkpoint)
    save(Path(output), checkpoint.state, checkpoint.variant, Recipe(), source=f"{Path(source).name}, inflated")
    said = ", ".join(f"stage {stage} {error:.0e}" for stage, error in errors.items())
    click.echo(
        f"a still clip gives the 2D features at every time step: relative error {said} (at most {TOLERANCE:.0e})"
    )
    click.echo(
        f"{output}: variant {checkpoint.variant.name}, window {window}, {human_bytes(Path(output).stat().st_size)}"
    )


@weights.command()
@click.argument("source", metavar="NAME|FILE", shell_complete=weights_names)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")
@reports_errors
def show(source: str, as_json: bool) -> None:
    """Show what is known of weights: variant, window, classes, recipe, licence, accuracy, source, hash."""
    import json

    from vswin_extract.checks.weights import describe_weights

    known = describe_weights(source)
    if as_json:
        click.echo(json.dumps(known, indent=1))
        return
    recipe, window = known["recipe"], known["window"]
    pixels = f"{recipe['clip_len']} frames {recipe['frame_interval']} apart, short side {recipe['resize']}, crop "
    pixels += f"{recipe['size']}, mean {_numbers(recipe['mean'])}, std {_numbers(recipe['std'])} of RGB on 0-255"
    accuracy = UNKNOWN
    if known["accuracy"]:
        accuracy = f"top-1 {known['accuracy'][0]} %, top-5 {known['accuracy'][1]} %, {known['views']}"
    rows = [
        ("name", known["name"]),
        ("file", known["file"] or f"not here yet; get it with: vswin weights pull {known['name']}"),
        ("variant", known["variant"]),
        ("window", "x".join(map(str, window)) if window else UNKNOWN),
        ("parameters", f"{known['parameters']:,}" if known["parameters"] else UNKNOWN),
        ("layout", known["layout"]),
        ("trained on", known["dataset"] or UNKNOWN),
        ("accuracy", accuracy),
        ("classes", _classes(known["num_classes"], known["classes"])),
        ("recipe", pixels),
        ("licence", known["licence"] or UNKNOWN),
        ("source", known["source"] or UNKNOWN),
        ("sha256", known["sha256"] or "none is published"),
        *(("note", note) for note in known["notes"]),
    ]
    stdout().print(table(rows))


UNKNOWN = "not known"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _classes(count: int, names: list[str]) -> str:
    if not count:
        return "none: these weights have no head, and give no logits"
    if not names:
        return f"{count}; their names are not known: columns of /logits are in the order of the training labels"
    return f"{count}: {', '.join(names[:5])}{'…' if len(names) > 5 else ''}"


@weights.command()
@click.argument("sources", nargs=-1, required=True, metavar="NAME|FILE...", shell_complete=weights_names)
@click.option(
    "--record", is_flag=True, help="Store golden features of weights that have none yet, for later comparison."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")
@reports_errors
def verify(sources: tuple[str, ...], record: bool, as_json: bool) -> None:
    """Check weights: sha256, exact fit, finite values, and golden features on this machine, in float32 on the
    processor. Exit code 4 where something is wrong."""
    import json
    from dataclasses import asdict

    from vswin_extract.checks.weights import verify_weights

    found = {}
    for source in sources:
        found[source] = list(verify_weights(source, record))
        if not as_json:
            stdout().print(f"{printable(source)}:", markup=False)
            show_checks(found[source])
    if as_json:
        click.echo(
            json.dumps({source: [asdict(check) for check in checks] for source, checks in found.items()}, indent=1)
        )
    if any(check.state == "failed" for checks in found.values() for check in checks):
        sys.exit(4)
