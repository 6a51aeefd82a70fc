"""A job: making one touches no disk; its directories are checked when it is run."""

import inspect
import os
from dataclasses import fields
from pathlib import Path

import pytest

import vswin_extract
from vswin_extract.errors import UsageError
from vswin_extract.job.job import Job
from vswin_extract.run.run import run
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import Video


def test_making_a_job_touches_no_disk(tmp_path: Path) -> None:
    video = Video("a.mp4", Address("s3://bucket/a.mp4"))
    job = Job((video,), tmp_path / "nowhere" / "out.h5", storage=tmp_path / "none", cache_dir=tmp_path / "cache")
    assert os.listdir(tmp_path) == []
    with pytest.raises(UsageError, match=str(tmp_path / "none")):
        job.check_directories()
    with pytest.raises(UsageError, match=str(tmp_path / "none")):
        next(run(job))
    Job((video,), tmp_path / "out.h5", cache_dir=tmp_path / "cache").check_directories()
    assert os.listdir(tmp_path) == ["cache"]


def test_extract_has_every_option_of_a_job() -> None:
    """`videos` come from `inputs` and `manifest`; a shard is for batch systems, which use the command."""
    given = set(inspect.signature(vswin_extract.extract).parameters) - {"inputs", "manifest", "on_event"}
    assert given == {field.name for field in fields(Job)} - {"videos", "shard"}
