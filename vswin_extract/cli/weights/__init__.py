"""`vswin weights`: cache.py lists and downloads weights and cleans the cache, convert.py makes weights of other files,
show.py describes and verifies weights. Click removes `_command` from the names of their functions."""

import click

from vswin_extract.cli.command import HELP, AliasGroup
from vswin_extract.cli.weights.cache import list_command, path_command, prune_command, pull_command
from vswin_extract.cli.weights.convert import convert_command, inflate_command
from vswin_extract.cli.weights.show import show_command, verify_command


@click.group(
    cls=AliasGroup,
    context_settings=HELP,
    aliases={"ls": "list", "download": "pull", "get": "pull", "info": "show", "check": "verify"},
    examples=("vswin weights list", "vswin weights pull t-k400", "vswin weights show t-k400"),
)
def weights() -> None:
    """List, download, convert and check weights."""


for command in (
    list_command,
    pull_command,
    path_command,
    prune_command,
    convert_command,
    inflate_command,
    show_command,
    verify_command,
):
    weights.add_command(command)
