"""`vswin weights`: cache.py gets weights and looks after the cache, convert.py makes weights of other files, show.py
describes and verifies weights."""

import click

from vswin_extract.cli.options import HELP
from vswin_extract.cli.weights.cache import list_, path, prune, pull
from vswin_extract.cli.weights.convert import convert, inflate
from vswin_extract.cli.weights.show import show, verify


@click.group(context_settings=HELP)
def weights() -> None:
    """List, download, convert and check weights."""


for command in (list_, pull, path, prune, convert, inflate, show, verify):
    weights.add_command(command)
