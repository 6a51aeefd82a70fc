"""Downloads of weights, with a bar on a terminal. Imports no torch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vswin_extract.cli.exit import fail
from vswin_extract.formatting import human_bytes, printable


@contextmanager
def download_bar(name: str, quiet: bool = False) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Show a bar while published weights are downloaded. Gives what to call with the bytes that are there and all
    bytes, and what to call with a sentence. Exits after Ctrl-C."""
    from tqdm import tqdm

    from vswin_extract.weights.pull import download_progress
    from vswin_extract.weights.registry import find_published

    there, total = download_progress(find_published(name))
    with tqdm(
        desc=name,
        unit="B",
        unit_scale=True,
        initial=there,
        total=total or None,
        disable=True if quiet else None,  # None: unless on a terminal
        leave=False,
    ) as bar:

        def progress(done: int, total: int, bar: Any = bar) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        def notify(text: str) -> None:
            tqdm.write(f"{name}: {printable(text)}", file=sys.stderr)

        try:
            yield progress, notify
        except KeyboardInterrupt:
            bar.close()
            fail("stopped; the same command continues the download", 130)


def fetch_weights(name_or_file: str, offline: bool = False, quiet: bool = False) -> None:
    """Download published weights that a command needs and that are not here, or raise what `obtain_weights` raises.
    Say which weights another name means."""
    from vswin_extract.cli.console import note
    from vswin_extract.weights.cache import require_writable_cache, standard_name
    from vswin_extract.weights.pull import obtain_weights, weights_to_download

    name = standard_name(name_or_file)
    if not quiet and name != name_or_file.lower() and name != name_or_file:
        note(f"{name_or_file} is {name}")
    row = weights_to_download(name_or_file, offline)
    if row is None:
        return
    if not quiet:
        size = f" ({human_bytes(row.megabytes * 1e6)})" if row.megabytes else ""
        note(f"downloading the weights {row.name}{size} into {require_writable_cache()}")
    with download_bar(row.name, quiet) as (progress, say):
        obtain_weights(name_or_file, offline, progress, say)
