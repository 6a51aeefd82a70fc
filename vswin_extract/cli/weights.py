"""`vswin weights`: what there is, getting it, converting it."""

import click

from vswin_extract.cli.console import human_bytes, reports_errors, stderr, stdout, table


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def weights() -> None:
    """List, download and convert weights."""


@weights.command("list")
@reports_errors
def list_() -> None:
    """Show the published weights that can be pulled, and which are in the cache."""
    from vswin_extract.weights import BUNDLED, bundled_file, cache_dir, manifest

    bundled = human_bytes(bundled_file().stat().st_size)
    rows = [(BUNDLED, "drawn clips", "", "", bundled, "Apache-2.0", "yes")]
    for row in manifest().values():
        size = human_bytes(row.megabytes * 1e6) if row.megabytes else "?"
        here = "yes" if row.file.is_file() else ""
        top1, top5 = (f"{percent:.1f}" for percent in row.accuracy)
        rows.append((row.name, row.dataset, top1, top5, size, row.license, here))
    out = stdout()
    titles = ("name", "trained on", "top-1", "top-5", "size", "licence", "here")
    out.print(table(rows, titles, right=("top-1", "top-5", "size")))
    views = next(iter(manifest().values())).views
    out.print(f"\nTop-1 and top-5 in percent as published, mostly over {views}. Names begin with the variant.")
    out.print(f"Cache: {cache_dir()}")


@weights.command()
@click.argument("name")
@reports_errors
def pull(name: str) -> None:
    """Download published weights into the cache and check their hash."""
    from tqdm import tqdm

    from vswin_extract.weights import published
    from vswin_extract.weights import pull as pull_weights

    row = published(name)
    with tqdm(unit="B", unit_scale=True, desc=row.name, disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        path, said = pull_weights(name, progress)
    stderr().print(said)
    click.echo(path)


@weights.command()
@click.argument("source", metavar="NAME|FILE")
@click.argument("target", type=click.Path(dir_okay=False), metavar="OUT.safetensors")
@click.option("--variant", metavar="T|S|B|L", help="Size of the network, instead of the one that the shapes tell.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.safetensors if it is there.")
@click.option("--half", is_flag=True, help="Store 16-bit floats: half the size, features equal to about 1e-3.")
@reports_errors
def convert(source: str, target: str, variant: str | None, overwrite: bool, half: bool) -> None:
    """Write a checkpoint of any published layout as safetensors: quick to load, and no pickle inside."""
    from pathlib import Path

    from vswin_extract.checkpoints import save
    from vswin_extract.errors import UsageError
    from vswin_extract.preprocess import Recipe
    from vswin_extract.weights import load

    if not target.endswith(".safetensors"):
        raise UsageError(f"{target} must end in .safetensors")
    if Path(target).exists() and not overwrite:
        raise UsageError(f"{target} exists; add --overwrite to replace it")
    if not Path(target).absolute().parent.is_dir():
        raise UsageError(f"no directory {Path(target).absolute().parent} to write into")
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
