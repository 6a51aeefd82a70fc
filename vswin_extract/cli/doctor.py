"""`vswin doctor`: check this machine."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import show_checks
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import json_option
from vswin_extract.formatting import plural

if TYPE_CHECKING:
    from vswin_extract.checks.result import Check


@command("vswin doctor", "vswin doctor /scratch --json")
@click.argument("directory", default=".", type=click.Path(), metavar="[DIR]")
@click.option("--gpu", is_flag=True, help="Check the GPU instead, numbers and speed: a minute, to paste into an issue.")
@json_option
@reports_errors
def doctor(directory: str, gpu: bool, as_json: bool) -> None:
    """Check this machine: versions, cores, memory, devices, decoders, the weights cache, the file system of DIR (where
    outputs are to be; default: here), and that the network computes what it must. Exit code 1 where something fails."""
    import json
    from dataclasses import asdict
    from pathlib import Path

    def examine() -> "Iterator[Check]":
        from vswin_extract.checks.gpu import examine_gpu  # imports torch, which may take seconds
        from vswin_extract.checks.machine import examine_machine

        yield from examine_gpu() if gpu else examine_machine(Path(directory))

    checks = list(examine()) if as_json else show_checks(examine(), "checking this machine")
    failed = [check for check in checks if check.state == "failed"]
    warnings = [check for check in checks if check.state == "warning"]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        click.echo(f"{len(failed)} failed, {plural(len(warnings), 'warning')}")
        if gpu and len(checks) > 1:
            click.echo("Nothing above is private: please paste it into an issue, also if nothing failed.")
    if failed:
        sys.exit(1)
