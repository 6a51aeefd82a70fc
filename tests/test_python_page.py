"""docs/python.md is made from the docstrings, has every public name with an example, and its examples run."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
from conftest import ROOT
from python_reference import SPECIAL, python_page

import vswin_extract

PAGE = ROOT / "docs" / "python.md"
TEXT = PAGE.read_text()


def test_the_page_is_that_of_the_docstrings() -> None:
    assert python_page(TEXT) == TEXT, "python docs/reference.py"


def test_every_public_name_is_described_with_an_example() -> None:
    assert sorted(vswin_extract.HOMES) == sorted(vswin_extract.__all__)
    examples = "\n".join(re.findall(r"^ +(?:>>>|\.\.\.) (.*)$", TEXT, re.MULTILINE))
    for name in vswin_extract.__all__:
        value = getattr(vswin_extract, name)
        assert f"\n## {name}\n" in TEXT
        assert ">>>" in value.__doc__, name
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) and not method.startswith("_"):
                assert f"\n### {name}.{method}\n" in TEXT
                assert f".{method}(" in examples, f"{name}.{method} is in no example"
    assert SPECIAL == ("__call__",)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.REPORT_ONLY_FIRST_FAILURE
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert tried > 40
    assert failed == 0, "see the output of the test"
