"""An environment in which a module is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Absent:
    """A finder that finds no module of this name."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.module)


@contextmanager
def without(module: str) -> Iterator[None]:
    """Importing the module fails here as if it were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])
        yield
