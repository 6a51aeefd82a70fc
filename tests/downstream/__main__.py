"""Run the projects' own classes on exports: python -m tests.downstream CHECKOUTS [PROJECT ...]."""

import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from downstream.table import Row, table  # noqa: E402

RUNNERS = {
    "ActionFormer": ("happyharrycn/actionformer_release", "localization:actionformer"),
    "TriDet": ("dingfengshi/TriDet", "localization:tridet"),
    "OpenTAD": ("sming256/OpenTAD", "localization:opentad"),
    "Moment-DETR": ("jayleicn/moment_detr", "moments:moment_detr"),
    "QD-DETR": ("wjun0830/QD-DETR", "moments:qd_detr"),
    "lighthouse": ("line/lighthouse", "moments:lighthouse"),
    "UMT": ("TencentARC/UMT", "moments:umt"),
    "TVR": ("jayleicn/TVRetrieval", "moments:tvr"),
    "VSLNet": ("IsaacChanghau/VSLNet", "moments:vslnet"),
    "ASFormer": ("ChinaYi/ASFormer", "localization:asformer"),
    "mmaction2": ("open-mmlab/mmaction2", "moments:mmaction2"),
    "MGFN": ("carolchenyx/MGFN", "kept:mgfn"),
    "DSNet": ("li-plus/DSNet", "kept:dsnet"),
    "PGL-SUM": ("e-apostolidis/PGL-SUM", "kept:pgl_sum"),
    "clip-retrieval": ("rom1504/clip-retrieval", "tables:clip_retrieval"),
    "webdataset": ("", "tables:webdataset"),
    "datasets": ("", "tables:datasets"),
    "LanceDB": ("", "tables:lancedb"),
    "DuckDB": ("", "tables:duckdb"),
    "FiftyOne": ("", "tables:fiftyone"),
}
"""By project: the repository on GitHub (none for an installed library), and the function that returns its rows."""


def find_checkout(folder: Path, repository: str) -> Path | None:
    """Return the clone of a repository: a folder called as the repository, or owner+repository."""
    owner, _, name = repository.partition("/")
    found = [each for each in (folder / name, folder / f"{owner}+{name}") if each.is_dir()]
    return found[0].resolve() if found else None


def run(project: str, checkouts: Path) -> list[Row]:
    """Run one project in this process."""
    repository, place = RUNNERS[project]
    checkout = find_checkout(checkouts, repository) if repository else Path()
    if checkout is None:
        return [Row(project, "", f"no checkout of {repository}", None)]
    module, _, function = place.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        try:
            made: list[Row] = getattr(importlib.import_module(f"downstream.{module}"), function)(
                checkout, Path(folder).resolve()
            )
        except ImportError as error:
            return [Row(project, "", f"not run: {error}", None)]
    return made


def main(words: list[str]) -> int:
    if not words:
        print(__doc__)
        return 2
    checkouts, alone = Path(words[0]).resolve(), words[1:2] == ["--alone"]
    if alone:
        print("ROWS", json.dumps([asdict(row) for row in run(words[2], checkouts)]))
        return 0
    rows: list[Row] = []
    for project in words[1:] or RUNNERS:  # each in a process of its own: several have packages called libs and utils
        command = [sys.executable, "-m", "downstream", str(checkouts), "--alone", project]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
        found = [line[5:] for line in done.stdout.splitlines() if line.startswith("ROWS ")]
        if found:
            rows += [Row(**each) for each in json.loads(found[-1])]
        else:
            print(done.stderr, file=sys.stderr)
            rows.append(Row(project, "", f"failed: {(done.stderr.splitlines() or ['?'])[-1]}", None))
    print(table(rows))
    wrong = [row for row in rows if row.loads.startswith("failed") or (row.difference or 0) > 0.001]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
