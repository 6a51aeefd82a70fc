"""`vswin weights list, pull, path, prune`: the published weights, and the cache that they are kept in."""

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.console import say, stderr, stdout, table
from vswin_extract.cli.download import download_bar
from vswin_extract.cli.exit import reports_errors
from vswin_extract.formatting import human_bytes, plural, printable
from vswin_extract.weights.cache import is_cached

FOREIGN = 10
"""Files in the cache that are not published weights: how many are listed at most."""


@command("vswin weights list", short_help="Show the published weights, and which are in the cache.")
@reports_errors
def list_command() -> None:
    """Show the published weights that can be pulled, and which are in the cache."""
    from vswin_extract.weights.cache import DIRECTORIES, bundled_file, cache_dirs
    from vswin_extract.weights.pull import download_progress
    from vswin_extract.weights.registry import BUNDLED, manifest

    bundled = human_bytes(bundled_file().stat().st_size)
    rows = [(BUNDLED, "drawn clips", "", "", bundled, "Apache-2.0", "yes")]
    for row in manifest().values():
        size = human_bytes(row.megabytes * 1e6) if row.megabytes else "?"
        done, total = download_progress(row)
        here = "yes" if is_cached(row) else f"{done / total:.0%}" if total else ""
        top1, top5 = (f"{percent:.1f}" for percent in row.accuracy)
        trained_on = row.dataset.replace("Something-Something v2", "SSv2")  # 80 columns are enough then
        rows.append((row.name, trained_on, top1, top5, size, row.license, here))
    out = stdout()
    titles = ("name", "trained on", "top-1", "top-5", "size", "licence", "here")
    out.print(table(rows, titles, right=("top-1", "top-5", "size")))
    views = next(iter(manifest().values())).views
    out.print(f"\nTop-1 and top-5 in percent as published, mostly over {views}. Names begin with the variant.")
    for directory in cache_dirs():
        click.echo(f"Cache: {printable(str(directory))}")
    if not cache_dirs():
        click.echo(f"Cache: none, as this user has no home directory; set {DIRECTORIES} to a directory of your own")


@command(
    "vswin weights pull t-k400",
    "vswin weights pull t-k400 b-k400 --from /mnt/weights",
    short_help="Download published weights into the cache.",
)
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
def pull_command(names: tuple[str, ...], source: str) -> None:
    """Download published weights into the cache, check their hashes, and print where they are.

    A download that was stopped is continued; one that another process has begun is waited for.
    """
    from vswin_extract.errors import WeightsError
    from vswin_extract.weights.cache import bundled_file
    from vswin_extract.weights.pull import pull_weights
    from vswin_extract.weights.registry import BUNDLED, known_name

    failed = []
    known = dict.fromkeys(map(known_name, names))  # an unknown name is an error before anything is downloaded
    for name in known:
        if name == BUNDLED:
            click.echo(bundled_file())
            continue
        try:
            with download_bar(name) as (progress, notify):
                path, hashed = pull_weights(name, progress, notify, source)
        except WeightsError as error:
            failed.append(str(error))
            continue
        say(stderr(), hashed)
        click.echo(path)
    if failed:
        for message in failed[:-1]:
            click.echo(f"Error: {printable(message)}", err=True)
        raise WeightsError(failed[-1])


@command("vswin weights path t-k400", short_help="Print where the file of weights is.")
@click.argument("name", metavar="NAME|FILE", shell_complete=weights_names)
@reports_errors
def path_command(name: str) -> None:
    """Print where the file of weights is; exit code 2 where they have not been pulled."""
    from vswin_extract.weights.cache import find_weights

    click.echo(find_weights(name))


@command("vswin weights prune", "vswin weights prune --yes", short_help="Remove what unfinished downloads left.")
@click.option("--yes", is_flag=True, help="Remove it; otherwise it is only listed.")
@reports_errors
def prune_command(yes: bool) -> None:
    """List unfinished downloads in the cache, or remove them.

    Weights stay, and so does what is not known, which is listed: it may be somebody's.
    """
    from vswin_extract.weights.cache import find_leftovers, remove_leftovers

    found = find_leftovers()
    size = sum(path.stat().st_size for path in found.unfinished)
    if found.unfinished:
        stdout().print(table([(human_bytes(path.stat().st_size), path) for path in found.unfinished]))
    if yes:
        remove_leftovers(found.unfinished)
    if found.unfinished:
        done = "removed" if yes else "not removed; remove with: vswin weights prune --yes"
        click.echo(f"{plural(len(found.unfinished), 'unfinished file')}, {human_bytes(size)}: {done}")
    else:
        click.echo("no unfinished downloads")
    for running in found.running:
        click.echo(f"being downloaded, and left: {printable(running)}")
    for path in found.foreign[:FOREIGN]:
        click.echo(f"not of the published weights, and left: {printable(str(path))}")
    if len(found.foreign) > FOREIGN:
        click.echo(f"and {len(found.foreign) - FOREIGN} more such files")
