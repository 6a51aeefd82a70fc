"""Where the value of an option comes from: the command line, the environment, a file of --config, or its default."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
from click.core import ParameterSource

CommandType = TypeVar("CommandType", bound=click.Command)
CONFIG = "vswin_extract.config"
"""The key of a context's `meta` for the file that --config named."""


def option_key(parameter: click.Parameter) -> str:
    """Return what a parameter is called on the command line, in files of --config and, in capitals, in the
    environment."""
    if isinstance(parameter, click.Argument):
        return {"inputs": "videos"}.get(name := parameter.name or "", name)
    longest = max(parameter.opts, key=len)
    return longest[2:] if longest.startswith("--") else parameter.name or longest


def by_environment(command: CommandType, prefix: str) -> CommandType:
    """Let each option be set by a variable, as VSWIN_EXTRACT_CLIP_LEN or VSWIN_WEIGHTS_CONVERT_VARIANT."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (parameter.expose_value or not parameter.is_flag):
            parameter.envvar = f"{prefix}_{option_key(parameter)}".replace("-", "_").upper()
    for name, below in getattr(command, "commands", {}).items():
        by_environment(below, f"{prefix}_{name}")
    return command


def by_command(context: click.Context) -> tuple[str, list[str]]:
    """Return what the variables of a command begin with, and their names. Commands of `vswin weights` share both."""
    group = context.parent.command if context.parent else None
    commands = list(getattr(group, "commands", {}).values()) or [context.command]
    names = [str(option.envvar) for command in commands for option in command.params if option.envvar]
    name = str(group.name if group and len(commands) > 1 else context.command.name)
    return f"VSWIN_{name}".upper(), names


def is_given(context: click.Context, parameter: click.Parameter) -> bool:
    """Return whether the command line, the environment or a file gives the value of a parameter."""
    return context.get_parameter_source(parameter.name or "") != ParameterSource.DEFAULT


def origin(context: click.Context, parameter: click.Parameter) -> str:
    """Return the variable, or the key and the file, that a parameter's value comes from; "" for others."""
    source = context.get_parameter_source(parameter.name or "")
    if source == ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return f"{option_key(parameter)} in {context.meta[CONFIG]}" if source == ParameterSource.DEFAULT_MAP else ""


def origins(context: click.Context | None) -> str:
    """Return all variables, and the file, that a command's options come from; "" if there are none."""
    if context is None:
        return ""
    found = {origin(context, parameter).rpartition(" in ")[2]: None for parameter in context.command.params}
    return ", ".join(filter(None, found))


@contextmanager
def names_origin() -> Iterator[None]:
    """Around parsing: make an error name the variable, or the key and the file, that the wrong value comes from."""
    try:
        yield
    except click.BadParameter as error:
        if error.ctx and error.param and not error.param_hint and (where := origin(error.ctx, error.param)):
            error.param_hint = f"{error.param.get_error_hint(error.ctx)} ({where})"
        raise
