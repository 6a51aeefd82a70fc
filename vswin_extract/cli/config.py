"""Options in TOML files: --config reads them, and a run writes what it used beside its output."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vswin_extract.cli.console import CONFIG, key

HEADER = "# Written by vswin-extract"
"""How our own files begin; no other is replaced."""


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """What may be in a file, by its keys."""
    return {key(each): each for each in command.params if each.expose_value}


def read_config(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Make a file's values the defaults of the command's options."""
    if path is None or context.resilient_parsing:
        return
    import tomllib

    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise click.BadParameter(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path} is no TOML: {error}") from None
    known = parameters(context.command)
    context.meta[CONFIG] = path
    context.default_map = {}
    for name, value in found.items():
        if (spelt := name.replace("_", "-")) not in known:
            near = difflib.get_close_matches(spelt, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "keys are called as the options of --help"
            raise click.BadParameter(f"{path} has the unknown key {name}; {hint}")
        option = known[spelt]
        several = option.nargs == -1 or getattr(option, "multiple", False)
        values = value if several and isinstance(value, list) else [value]
        kinds, what = _takes(option.type)
        if not all(isinstance(each, kinds) and (kinds == (bool,) or not isinstance(each, bool)) for each in values):
            raise click.BadParameter(f"{path}: {name} must be {what}{', or a list of such' * several}, not {value!r}")
        context.default_map[str(option.name)] = tuple(values) if several else value


def _takes(kind: object) -> tuple[tuple[type, ...], str]:
    """The types of values in a file that an option takes. Click would make 8 of 8.5, and 1 of true."""
    if isinstance(kind, click.types.BoolParamType):
        return (bool,), "true or false"
    if isinstance(kind, click.types.IntParamType):
        return (int,), "a whole number"
    if isinstance(kind, click.types.FloatParamType):
        return (int, float), "a number"
    if isinstance(kind, click.Path | click.Choice):
        return (str,), "text in quotes"
    return (str, int, float), "text in quotes, or a number"  # as fps = 15, workers = "auto"


def check_environment(context: click.Context) -> None:
    """Raises UsageError for a variable that looks like an option's and is none: it would be ignored silently."""
    known = [str(each.envvar) for each in context.command.params if each.envvar]
    for name in os.environ:
        if name.startswith("VSWIN_EXTRACT_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "there is no such option"
            raise click.UsageError(f"unknown environment variable {name}; {hint}")


def settings(context: click.Context) -> Iterator[tuple[click.Parameter, Any]]:
    """The parameters of a command that have a value, and the value, by which the command does the same in any
    directory: paths are absolute."""
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if value is None:
            continue
        if isinstance(option.type, click.Path) or (option.name == "weights" and _is_file_of_weights(value)):
            value = [absolute(each) for each in value] if isinstance(value, tuple) else absolute(value)
        yield option, value


def given(context: click.Context, option: click.Parameter) -> bool:
    """Whether a value was chosen, by the command line, the environment or a file."""
    return context.get_parameter_source(option.name or "") != ParameterSource.DEFAULT


def write_config(context: click.Context, output: Path) -> str:
    """Write what a run used beside its output, so that --config does the same again. What is None follows from the
    weights or the device, and is left out; so is the shard, since all of them write this. Says why it did not."""
    import uuid

    import tomli_w

    from vswin_extract import __version__
    from vswin_extract.files import publish
    from vswin_extract.video.remote import is_remote, without_secrets

    path = output.with_suffix(".toml")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEADER.encode())):
        return f"{path} is not ours, so that the options of this run are not written there"
    table: dict[str, Any] = {}
    for option, value in settings(context):
        if option.name == "dry_run" or (option.name == "shard" and "/" in value):
            continue
        if isinstance(value, tuple | list):
            value = [without_secrets(each) if isinstance(each, str) and is_remote(each) else each for each in value]
        table[key(option)] = without_secrets(value) if isinstance(value, str) and is_remote(value) else value
    text = f"{HEADER} {__version__}: vswin-extract --config {path.name}\n{tomli_w.dumps(table)}"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return f"a name is no UTF-8, which TOML cannot say, so that {path} is not written"
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # tasks of several hosts may be here
    unfinished.write_bytes(content)
    publish(unfinished, path)
    return ""


def _is_file_of_weights(name: str) -> bool:
    from vswin_extract.weights.registry import BUNDLED

    return name != BUNDLED and os.path.isfile(name)


def absolute(path: str) -> str:
    """Unless it is a URL, or - for standard input."""
    return path if "://" in path or path == "-" else os.path.join(os.getcwd(), path)
