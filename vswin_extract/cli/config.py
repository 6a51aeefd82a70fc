"""Options in TOML files: --config reads them, and a run writes the options it used beside its output. `vswin config`
shows which options are in force, and where each comes from."""

import copy
import errno
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vswin_extract.cli.command import HELP, command, suggest
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import Stages
from vswin_extract.cli.origins import CONFIG, by_command, is_given, option_key, origin
from vswin_extract.formatting import printable

GENERAL = ("VSWIN_WEIGHTS_DIR", "VSWIN_WEIGHTS_MIRROR", "VSWIN_OFFLINE", "VSWIN_RESTARTED")
"""Variables that belong to no option."""
MOST_BYTES = 16 << 20
"""Bytes of a file of options, at most; it may list many videos."""
HEADER = "# Written by vswin-extract"
"""How our own files begin. Other files are never replaced."""


@command(
    "vswin config",
    "vswin config --config run.toml --stride 4",
    context_settings={**HELP, "ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF VSWIN-EXTRACT]")
@reports_errors
def config(words: tuple[str, ...]) -> None:
    """Show the settings of vswin-extract that are in force here, and where each comes from: these options, variables,
    the file of --config, or the default."""
    from vswin_extract.cli.console import stdout, table
    from vswin_extract.cli.extract import extract

    asked = copy.copy(extract)
    asked.params = [copy.copy(each) for each in extract.params]
    for parameter in asked.params:
        parameter.required = False
    with asked.make_context("vswin-extract", list(words)) as context:
        check_environment(context)
        rows = [*_option_rows(context), *_general_rows()]
    stdout().print(table(rows, ("setting", "value", "from")))


def _option_rows(context: click.Context) -> Iterator[tuple[str, str, str]]:
    from vswin_extract.video.remote import is_remote, without_secrets

    for key, parameter in parameters(context.command).items():
        value = context.params.get(parameter.name or "")
        if is_given(context, parameter):
            words = ["auto"] if value is None else map(str, value if isinstance(value, tuple) else (value,))
            shown = " ".join(without_secrets(word) if is_remote(word) else word for word in words)
            yield key, shown.lower() if isinstance(value, bool) else shown, origin(context, parameter) or "command line"
        elif isinstance(parameter, click.Option):
            in_help = re.search(r"\[default: (.*)\]", parameter.help or "")
            usual = parameter.default if isinstance(parameter.default, str | float | int) else "none"
            yield key, in_help[1] if in_help else str(value if parameter.is_flag else usual).lower(), "default"


def _general_rows() -> Iterator[tuple[str, str, str]]:
    from vswin_extract.video.remote import without_secrets
    from vswin_extract.weights.cache import DIRECTORIES, OFFLINE, cache_dirs, is_offline
    from vswin_extract.weights.pull import MIRROR

    def where(variable: str) -> str:
        return variable if os.environ.get(variable) else "default"

    yield "weights cache", os.pathsep.join(map(str, cache_dirs())) or "none", where(DIRECTORIES)
    yield "weights come from", without_secrets(os.environ.get(MIRROR, "")) or "where they are published", where(MIRROR)
    yield "no downloads", str(is_offline()).lower(), where(OFFLINE)


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters that may be in a file, by their keys."""
    return {option_key(each): each for each in command.params if each.expose_value}


def read_config(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Make the values of a file the defaults of the command's options. Raises click.BadParameter."""
    if path is None or context.resilient_parsing:
        return
    found = _read_toml(path)
    known = parameters(context.command)
    context.meta[CONFIG] = path
    context.default_map = {}
    keys: dict[str, str] = {}
    for name, value in found.items():
        option = known.get(spelt := name.replace("_", "-"))
        if option is None:
            hint = suggest(spelt.lower(), known) or "keys are called as the options of --help"
            raise click.BadParameter(f"{path} has the unknown key {printable(name)}; {hint}")
        if (other := keys.setdefault(spelt, name)) != name:
            raise click.BadParameter(f"{path} has both {other} and {name}, which are one option; leave one of them out")
        several = option.nargs == -1 or getattr(option, "multiple", False)
        values = value if several and isinstance(value, list) else [value]
        kinds, what = _accepted(option.type)
        fits = all(isinstance(each, kinds) and (kinds == (bool,) or not isinstance(each, bool)) for each in values)
        if not fits or (isinstance(option.type, Stages) and not all(map(option.type.parse, values))):
            shown = reprlib.repr(value)
            raise click.BadParameter(f"{path}: {name} must be {what}{', or a list of such' * several}, not {shown}")
        if any("\0" in each for each in values if isinstance(each, str)):
            raise click.BadParameter(f"{path}: {name} has a null character: {value!r}")
        context.default_map[str(option.name)] = tuple(values) if several else value


def _read_toml(path: str) -> dict[str, Any]:
    """Return what a file of options contains. Raises click.BadParameter."""
    import tomllib

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
            reason = os.strerror(errno.EISDIR) if os.path.isdir(path) else "it is a device or a pipe, not a file"
            raise click.BadParameter(f"cannot read {path}: {reason}")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise click.BadParameter(f"{path} has more than {MOST_BYTES >> 20} MB, so it is no file of options")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise click.BadParameter(f"{path} is no file of options: it is nested too deeply") from None
    except ValueError as error:  # also of text that is not UTF-8, and of a number of thousands of digits
        raise click.BadParameter(f"{path} is no TOML: {error}") from None


def _accepted(kind: object) -> tuple[tuple[type, ...], str]:
    """Return the types of TOML values that an option takes, and their description. Click would turn 8.5 into 8, and
    true into 1."""
    if isinstance(kind, click.types.BoolParamType):
        return (bool,), "true or false"
    if isinstance(kind, click.types.IntParamType):
        return (int,), "a whole number"
    if isinstance(kind, Stages):
        return (int, str), 'a stage from 1 to 4, or "all"'
    if isinstance(kind, click.types.FloatParamType):
        return (int, float), "a number"
    if isinstance(kind, click.Path | click.Choice):
        return (str,), "text in quotes"
    return (str, int, float), "text in quotes, or a number"  # as fps = 15, workers = "auto"


def check_environment(context: click.Context) -> None:
    """Raise click.UsageError if a variable looks like the one of an option and is none: it would have no effect.
    Variables of other commands are not looked at, and those that begin with VSWIN_ and resemble none are ignored."""
    prefix, options = by_command(context)
    known = [*options, *GENERAL]
    for name in os.environ:
        upper = name.upper()
        if not upper.startswith("VSWIN_") or name in known:
            continue
        meant = next((each for each in (upper, f"{prefix}_{upper[6:]}") if each in known), "")
        if upper.startswith(f"{prefix}_"):
            hint = f"did you mean {meant}?" if meant else suggest(upper, known) or "there is no such option"
        elif meant:
            hint = f"did you mean {meant}?"
        else:
            hint = suggest(upper, GENERAL, least=0.9)
        if hint:
            raise click.UsageError(f"unknown environment variable {printable(name)}; {hint}")


def settings(context: click.Context) -> Iterator[tuple[click.Parameter, Any]]:
    """Yield the parameters of a command that have a value, and the value. Paths are absolute, so that the values mean
    the same in any directory."""
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if value is None:
            continue
        if isinstance(option.type, click.Path) or (option.name == "weights" and _is_file_of_weights(value)):
            value = [absolute(each) for each in value] if isinstance(value, tuple) else absolute(value)
        yield option, value


def write_config(context: click.Context, output: Path) -> str:
    """Write the options of a run to OUT.h5.toml beside its output, so that --config does the same again. Return why the
    file is not written, "" if it is, or if it has the same options and is that of --config.

    Options without a value follow from the weights or the device, and are left out. So is the number of the shard,
    since all shards write the same file.
    """
    import tomllib

    import tomli_w

    from vswin_extract import __version__
    from vswin_extract.files import atomic_write
    from vswin_extract.video.remote import is_remote, without_secrets

    path = output.with_name(f"{output.name}.toml")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEADER.encode())):
        return f"{path} was not written by vswin-extract, so the options of this run are not saved there"
    options: dict[str, Any] = {}
    for option, value in settings(context):
        if option.name == "dry_run" or (option.name == "shard" and "/" in value):
            continue
        if isinstance(value, tuple | list):
            value = [without_secrets(each) if isinstance(each, str) and is_remote(each) else each for each in value]
        options[option_key(option)] = without_secrets(value) if isinstance(value, str) and is_remote(value) else value
    text = f"{HEADER} {__version__}: vswin-extract --config {path.name}\n{tomli_w.dumps(options)}"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return f"a name is not UTF-8, which TOML needs, so {path} is not written"
    if CONFIG in context.meta and path.exists() and path.samefile(context.meta[CONFIG]):
        same = _read_toml(str(path)) == tomllib.loads(text)
        return "" if same else f"{path} is the file of --config, so it stays as it is, without the other options"
    try:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:  # the work is done; a shard that keeps its journal elsewhere writes nothing else there
        return f"{path} is not written: {error.strerror}"
    return ""


def _is_file_of_weights(name: str) -> bool:
    from vswin_extract.weights.registry import BUNDLED

    return name != BUNDLED and os.path.isfile(name)


def absolute(path: str) -> str:
    """Return an absolute path; URLs and -, for standard input, stay as they are."""
    return path if "://" in path or path == "-" else os.path.join(os.getcwd(), path)
