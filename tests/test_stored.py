"""Files of a journal that are valid JSON, but not what this package writes: they are damaged, and no more than that."""

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from journals import ARRAYS, SETTINGS, add, begin, expect_complete, names, publish

from vswin_extract.errors import OutputError
from vswin_extract.journal.directory import read_job, read_list
from vswin_extract.journal.entries import entry_files
from vswin_extract.journal.merge import merge
from vswin_extract.journal.stored import check_entry, check_job, check_list

WRONG = [None, True, [], [1], {}, {"a": 1}, "", "5", -1, 1.5, 10**30, float("nan"), float("inf"), "\ud800", "a\0b"]
"""Values that some field or other does not take."""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where a value can be replaced: everywhere in it, but not in what is free in form."""
    yield path
    if path[-1:] in (("settings",), ("attributes",)):
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What job.json, videos.json and an entry of a journal say."""
    with begin(tmp_path_factory.mktemp("journal") / "out.h5", 2) as journal:
        add(journal.writer(), 0)
        content = {name: json.loads((journal.root / f"{name}.json").read_text()) for name in ("job", "videos")}
        return {**content, "entry": json.loads(next(journal.root.glob("shard-*/*.json")).read_text())}


CHECKS: dict[str, Callable[[Any], Any]] = {"job": check_job, "videos": check_list, "entry": check_entry}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_value_of_a_wrong_type_is_a_value_error(kind: str, stored: dict[str, Any]) -> None:
    """Anything else is what this package may have written, or an edit that cannot be told from it."""
    content, check = stored[kind], CHECKS[kind]
    check(copy.deepcopy(content))
    for path in places(content):
        if not path:  # `read_json` sees to that
            continue
        refused = 0
        for wrong in WRONG:
            try:
                check(replaced(content, path, wrong))
            except ValueError:
                refused += 1
        assert refused >= 3, path  # a text may be any text, a number any number in its range


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
@given(data=st.data())
def test_no_value_is_a_traceback(kind: str, stored: dict[str, Any], data: st.DataObject) -> None:
    content = stored[kind]
    path = data.draw(st.sampled_from([path for path in places(content) if path]))
    with contextlib.suppress(ValueError):
        CHECKS[kind](replaced(content, path, data.draw(values)))


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda entry: [],
    "null": lambda entry: None,
    "a number": lambda entry: 5,
    "no keys": lambda entry: {},
    "a record that is a text": lambda entry: {**entry, "videos": ["a"]},
    "a number as a text": lambda entry: replaced(entry, ("videos", 0, "clips"), "1"),
    "negative clips": lambda entry: replaced(entry, ("videos", 0, "clips"), -3),
    "more clips than rows": lambda entry: replaced(entry, ("videos", 0, "clips"), 1 << 39),
    "a huge number": lambda entry: replaced(entry, ("videos", 0, "size"), 10**400),
    "not a number": lambda entry: replaced(entry, ("videos", 0, "fps"), float("nan")),
    "an id that is null": lambda entry: replaced(entry, ("videos", 0, "id"), None),
    "an id with a zero byte": lambda entry: replaced(entry, ("videos", 0, "id"), "a\0b"),
    "a clip range of texts": lambda entry: replaced(entry, ("videos", 0, "clip_range"), ["0", None]),
    "a sha256 that is a number": lambda entry: {**entry, "sha256": 5},
    "no sha256 of rows": lambda entry: {**entry, "sha256": ""},
    "nested too deeply": lambda entry: "[" * 100_000,
}


@pytest.fixture
def journal_of_three(tmp_path: Path) -> Path:
    with begin(tmp_path / "out.h5", 3) as journal:
        for number in range(3):
            add(journal.writer(), number)
        journal.writer().close(pack=False)
    return tmp_path / "out.h5"


def rewrite(path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    changed = damage(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))


def test_damaged_entries_are_named_and_extracted_again(run: Run, tmp_path: Path) -> None:
    output, root, count = tmp_path / "out.h5", tmp_path / "out.h5.parts", 3 + 7 * len(DAMAGES)
    with begin(output, count) as journal:
        for number in range(0, count, 7):
            add(journal.writer(), number)
        journal.writer().close(pack=False)
    entries = {json.loads(path.read_text())["videos"][0]["id"]: path for path in entry_files(root)}
    damaged = dict(zip(names(count)[::7], DAMAGES, strict=False))
    assert len(damaged) == len(DAMAGES)
    for name, what in damaged.items():
        rewrite(entries[name], DAMAGES[what])
    before = {path: path.read_bytes() for path in entries.values()}
    checked = run("vswin", "check", output)
    assert checked.returncode == 4
    for name, what in damaged.items():
        assert entries[name].stem in checked.stdout, what
    merged = run("vswin", "merge", output)
    assert (merged.returncode, names(count)[0] in merged.stderr) == (2, True)
    for path, content in before.items():  # as they were before that removed the damaged ones
        path.write_bytes(content)
    with begin(output, count) as journal:
        assert len(journal.notes) == len(DAMAGES)
        for name, what in damaged.items():
            assert any(str(entries[name].with_suffix(".rows")) in note for note in journal.notes), what
        assert not journal.entries.keys() & damaged.keys()


def test_entries_that_are_no_files_are_named(run: Run, journal_of_three: Path) -> None:
    directory = next(journal_of_three.with_name("out.h5.parts").glob("shard-*"))
    (directory / f"{'0' * 32}.json").mkdir()
    os.mkfifo(directory / f"{'1' * 32}.json")
    (directory / "pack-x.json").mkdir()  # a name that no pack has: it is not looked at
    assert run("vswin", "check", journal_of_three).returncode == 4
    with begin(journal_of_three, 3) as journal:
        assert sorted(Path(note.split()[0]).stem for note in journal.notes) == ["0" * 32, "1" * 32]
        publish(journal, 3)
    expect_complete(journal_of_three, 3)


@pytest.mark.parametrize("name", ["job.json", "videos.json"])
def test_a_damaged_file_of_the_run_is_an_error(run: Run, journal_of_three: Path, name: str) -> None:
    root = journal_of_three.with_name("out.h5.parts")
    for content in ("[]", "null", "5", '{"run": 5, "ids": 5}', '{"run": "../x", "settings": {}}', "[" * 9999):
        (root / name).write_text(content)
        for words in (["check", journal_of_three], ["merge", journal_of_three]):
            done = run("vswin", *words)
            assert (done.returncode, str(root / name) in done.stderr) == (2, True), done.stderr
        with pytest.raises(OutputError, match=f"{name} is damaged"):
            read_job(root) if name == "job.json" else read_list(root)
        assert len(entry_files(root)) == 3


def test_arrays_of_a_hostile_job(journal_of_three: Path) -> None:
    """Types of Python objects, or shapes that no memory holds, reach neither NumPy nor HDF5."""
    job = journal_of_three.with_name("out.h5.parts") / "job.json"
    content = json.loads(job.read_text())
    assert content["arrays"]["dtype"] == ARRAYS.dtype
    for path, wrong in (
        (("arrays", "dtype"), "O"),
        (("arrays", "compression"), 5),
        (("arrays", "shapes", "embedding"), [1 << 40]),
        (("arrays", "shapes", "embedding"), [-1]),
        (("arrays", "shapes"), {"clips/frames": [2]}),
        (("settings",), {"precision": None}),
        (("settings",), {**SETTINGS, "sampling": "clip_len"}),
    ):
        job.write_text(json.dumps(replaced(content, path, wrong)))
        with pytest.raises(OutputError, match=r"job\.json is damaged"):
            merge(journal_of_three)
