"""`vswin weights show, verify`: describe and verify weights."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.console import say, show_checks, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import ema_option, json_option
from vswin_extract.formatting import plural

UNKNOWN = "not known"


@command("vswin weights show t-k400", "vswin weights show mine.pth --json", short_help="Show what is known of weights.")
@click.argument("source", metavar="NAME|FILE", shell_complete=weights_names)
@ema_option()
@json_option
@reports_errors
def show_command(source: str, ema: bool, as_json: bool) -> None:
    """Show what is known of weights: variant, window, classes, recipe, licence, accuracy, source, hash."""
    from vswin_extract.checks.weights import describe_weights

    known = describe_weights(source, ema)
    if as_json:
        click.echo(json.dumps(known, indent=1))
    else:
        stdout().print(table(_rows(known)))


def _rows(known: dict[str, Any]) -> list[tuple[str, str]]:
    recipe, window = known["recipe"], known["window"]
    pixels = f"{plural(recipe['clip_len'], 'frame')} {recipe['frame_interval']} apart, short side {recipe['resize']}, "
    pixels += f"crop {recipe['size']}, mean {_numbers(recipe['mean'])}, std {_numbers(recipe['std'])} of RGB on 0-255"
    accuracy = UNKNOWN
    if known["accuracy"]:
        accuracy = f"top-1 {known['accuracy'][0]} %, top-5 {known['accuracy'][1]} %, {known['views']}"
    return [
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


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _classes(count: int, names: list[str]) -> str:
    if not count:
        return "none: these weights have no head, and give no logits"
    if not names:
        return f"{count}; their names are not known: columns of /logits are in the order of the training labels"
    return f"{count}: {', '.join(names[:5])}{'…' if len(names) > 5 else ''}"


@command(
    "vswin weights verify t-k400",
    "vswin weights verify mine.pth --record",
    short_help="Check weights, and what they compute here.",
)
@click.argument("sources", nargs=-1, required=True, metavar="NAME|FILE...", shell_complete=weights_names)
@click.option(
    "--record", is_flag=True, help="Store golden features of weights that have none yet, for later comparison."
)
@ema_option()
@json_option
@reports_errors
def verify_command(sources: tuple[str, ...], record: bool, ema: bool, as_json: bool) -> None:
    """Check weights: sha256, exact fit, finite values, and golden features on this machine, in float32 on the
    processor. Exit code 4 where something is wrong."""
    from vswin_extract.checks.weights import verify_weights

    found = {}
    for source in sources:
        checks = verify_weights(source, record, ema)
        if as_json:
            found[source] = list(checks)
        else:
            say(stdout(), f"{source}:")
            found[source] = show_checks(checks, f"checking {source}")
    if as_json:
        facts = {source: [asdict(check) for check in checks] for source, checks in found.items()}
        click.echo(json.dumps(facts, indent=1))
    if any(check.state == "failed" for checks in found.values() for check in checks):
        sys.exit(4)
