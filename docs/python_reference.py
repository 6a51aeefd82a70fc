"""The text of docs/python.md, made from docstrings: every public name of the package, with its methods and attributes.

`python docs/reference.py` writes the page. A test compares it, and runs its examples from top to bottom.
"""

import inspect
import re
from collections.abc import Iterator
from textwrap import dedent, indent
from typing import Any

import vswin_extract

FIRST = "## load_model\n"
"""Where the made part of docs/python.md begins."""
CONSTRUCTED = ("FeatureDataset",)
"""Classes that a program calls. Values of the others are returned to it."""
SPECIAL = ("__call__",)
"""Methods with such names that are described; the text of the class describes the others."""


def python_page(text: str) -> str:
    """The text of docs/python.md, whose introduction stays."""
    introduction = text.partition(FIRST)[0].rstrip("\n") + "\n"
    return "\n".join([introduction, *(line for name in vswin_extract.HOMES for line in entry(name))])


def entry(name: str) -> Iterator[str]:
    """A function, or a class with its attributes and methods."""
    value = getattr(vswin_extract, name)
    yield f"## {name}\n"
    if not inspect.isclass(value):
        yield f"    {name}{arguments(value)}\n"
        yield from described(value)
        return
    above = [base.__name__ for base in value.__bases__ if base.__name__ in vswin_extract.HOMES]
    yield f"    class {name}{arguments(value) if name in CONSTRUCTED else ''}\n"
    if above:
        yield f"A [{above[0]}](#{above[0].lower()}), with all that it has.\n"
    yield from described(value)
    members = {each: member for each, member in vars(value).items() if each in SPECIAL or not each.startswith("_")}
    attributes = {each: member for each, member in members.items() if isinstance(member, property)}
    if attributes:
        rows = [f"| `{each}` | {first_paragraph(member)} |" for each, member in attributes.items()]
        yield "\n".join(["| attribute | |", "|---|---|", *rows]) + "\n"
    for each, member in members.items():
        if inspect.isfunction(member):
            yield f"### {name}.{each}\n"
            yield f"    {'model' if each in SPECIAL else f'{name}.{each}'}{arguments(member)}\n"
            yield from described(member)


def arguments(value: Any) -> str:
    """The arguments of a function or class, as (path, *, stride=None), without self and types."""
    signature = inspect.signature(value)
    shown = []
    for argument in signature.parameters.values():
        if argument.name == "self":
            continue
        default = argument.default
        if callable(default) and default is not argument.empty:
            default = ...  # a function that does nothing
        shown.append(argument.replace(annotation=argument.empty, default=default))
    text = str(signature.replace(parameters=shown, return_annotation=signature.empty))
    return text.replace("=Ellipsis", "=...")


def described(value: Any) -> Iterator[str]:
    """The docstring: each paragraph as one line; examples and tables, which are indented, as they stand."""
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(value.__doc__ or "")):
        as_it_stands = paragraph.startswith(("    ", ">>>"))
        yield (indent(dedent(paragraph), "    ") if as_it_stands else " ".join(paragraph.split())) + "\n"


def first_paragraph(value: Any) -> str:
    return " ".join((value.__doc__ or "").partition("\n\n")[0].split()).replace("|", "\\|")
