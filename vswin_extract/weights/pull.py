"""Bring published weights into the cache, under a lock that all hosts of a shared file system see."""

import os
import queue
import threading
import time
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import url2pathname

from vswin_extract import locks
from vswin_extract.errors import OutputError, UsageError, WeightsError
from vswin_extract.files import atomic_write, file_sha256, names_path
from vswin_extract.video.remote import without_secrets
from vswin_extract.weights.cache import (
    DEAD_AFTER,
    OFFLINE,
    add_suffix,
    cached_file,
    check_hash,
    expected_sha256,
    find_weights,
    is_cached,
    is_offline,
    missing_weights,
    recorded_hash_file,
    require_writable_cache,
    writable_cache,
)
from vswin_extract.weights.download import PATIENT, Patience, Say, download, unreachable
from vswin_extract.weights.part import ProgressCallback, copy_to_part, publish_part, read_origin, remove_part
from vswin_extract.weights.registry import Published, find_published

MIRROR = "VSWIN_WEIGHTS_MIRROR"
"""The environment variable that names a mirror, which replaces the addresses of the manifest."""
TOUCH_EVERY = 10.0
"""Seconds after which the process that holds a lock touches it again."""
POLL = 0.5
"""Seconds after which a process that waits for another one's download looks again."""
ANSWER = 8.0
"""Seconds within which a server must answer before weights are downloaded that nobody has pulled by a command."""


def obtain_weights(
    name_or_file: str,
    offline: bool = False,
    progress: ProgressCallback = lambda done, total: None,
    say: Say = lambda sentence: None,
    answer: float = ANSWER,
) -> Path:
    """Return the file of weights. Published weights that are not here are downloaded first, as `pull_weights` does.

    With `offline`, or if $VSWIN_OFFLINE is set, nothing is downloaded. `progress` and `say`: as for `pull_weights`.
    `answer`: a server that does not answer within so many seconds cannot be reached. Raise what `find_weights` and
    `pull_weights` raise; the WeightsError without a network says so, and what to do.
    """
    row = weights_to_download(name_or_file, offline)
    return pull_weights(row.name, progress, say, answer=answer)[0] if row else find_weights(name_or_file)


def download_notice(name_or_file: str, offline: bool = False) -> str:
    """Return what to tell before `obtain_weights` downloads weights, "" if they are here. Raise what
    `weights_to_download` raises."""
    row = weights_to_download(name_or_file, offline)
    return f"downloading the weights {row.name}, which are not in the cache" if row else ""


def weights_to_download(name_or_file: str, offline: bool = False) -> Published | None:
    """Return the published weights that `obtain_weights` would download, None if they are here. Raise what it raises
    before a download: WeightsError if a download is forbidden, or no cache can be written, and UsageError."""
    row = missing_weights(name_or_file)
    if row is None or writable_cache() is None:
        find_weights(name_or_file)
        return None
    if offline or is_offline():
        why = "--offline" if offline else OFFLINE
        raise WeightsError(
            f"{row.name} is not in the weights cache, and {why} forbids a download; where there is a network: "
            f"vswin weights pull {row.name}"
        )
    return row


def pull_weights(
    name: str,
    progress: ProgressCallback = lambda done, total: None,
    say: Say = lambda sentence: None,
    source: str = "",
    patience: Patience = PATIENT,
    poll: float = POLL,
    answer: float | None = None,
) -> tuple[Path, str]:
    """Download published weights into the cache unless they are there.

    Return their path and a sentence about their hash.

    `progress(done, total)`: called with bytes; the total is 0 if the server does not tell it. `say`: called with a
    sentence about each wait. `source`: the address or directory of a mirror. An unfinished download is continued. If
    several processes pull the same weights, on any hosts, one of them downloads and the others wait, looking every
    `poll` seconds. The file is published only after its hash was checked. `answer`: if the server does not answer
    within so many seconds, it cannot be reached; None: after a time that depends on the network. Raise UsageError,
    WeightsError, and OSError if the disk is full.
    """
    row = find_published(name)
    announced = sha256 = None
    while not is_cached(row):
        origin = _find_source(row, source)
        target = require_writable_cache() / row.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = add_suffix(target, ".lock")
        if holder := locks.acquire(lock, DEAD_AFTER):
            if holder != announced:
                say(f"{row.name} is being downloaded by {holder}; waiting for it (its lock is {lock})")
            announced = holder
            time.sleep(poll)
            continue
        with locks.held(lock, TOUCH_EVERY) as ours, names_path(target):
            if not target.is_file():
                if answer is not None and isinstance(origin, str):
                    _require_answer(row, origin, answer)
                try:
                    sha256 = _fill_cache(row, target, origin, _checking(progress, ours), say, patience)
                except FileNotFoundError:  # another process took this lock for abandoned, and finished the same part
                    if not target.is_file():
                        raise
                except OutputError:
                    if not ours.lost:  # else wait for the process that has taken it over
                        raise
    file = cached_file(row)
    return file, check_hash(sha256 or file_sha256(file), row)


def _checking(progress: ProgressCallback, lock: locks.Lock) -> ProgressCallback:
    """Return a progress callback that raises OutputError once the lock was taken over by another process."""

    def checked(done: int, total: int) -> None:
        lock.check()
        progress(done, total)

    return checked


def _require_answer(row: Published, url: str, seconds: float) -> None:
    """Raise WeightsError unless the server, or a proxy, can be connected to within so many seconds."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    # in a thread, because looking up a name may take minutes
    threading.Thread(target=lambda: found.put(unreachable(url, 2 * seconds)), daemon=True).start()
    try:
        why = found.get(timeout=seconds)
    except queue.Empty:
        why = f"no answer within {seconds:g} s"
    if why:
        raise WeightsError(
            f"{row.name} is not in the weights cache, and its server does not answer here ({why}); "
            f"where there is a network, such as on the login node: vswin weights pull {row.name}; or put the file into "
            f"a directory and use: vswin weights pull {row.name} --from DIRECTORY"
        )


def download_progress(row: Published) -> tuple[int, int]:
    """Return how many bytes an unfinished download has, and how many the complete file has; (0, 0) if there is none."""
    if writable_cache() is None:
        return 0, 0
    part = add_suffix(cached_file(row), ".part")
    origin = read_origin(part)
    return (part.stat().st_size, origin.size) if origin else (0, 0)


def _fill_cache(
    row: Published, target: Path, origin: str | Path, progress: ProgressCallback, say: Say, patience: Patience
) -> str:
    """Write the file of a row to `target` and return its sha256. The caller holds the lock.

    A wrong hash is fatal only if the file came in one piece. Otherwise its first bytes may be damaged, for example by a
    power cut, and it is downloaded once more from the beginning.
    """
    part = add_suffix(target, ".part")
    in_pieces = True
    while in_pieces:
        try:
            if isinstance(origin, Path):
                in_pieces = False
                copy_to_part(origin, part, progress, row.most_bytes)
            else:
                in_pieces = download(origin, part, progress, say, patience, row.most_bytes)
        except WeightsError as error:
            raise WeightsError(
                f"cannot download {without_secrets(str(origin))}: {error}; without network access, put the file into a "
                f"directory and use: vswin weights pull {row.name} --from DIRECTORY; or put it into {target.parent}"
            ) from error
        expected, sha256, size = expected_sha256(row), file_sha256(part), part.stat().st_size
        if sha256.startswith(expected):
            if not expected:
                with atomic_write(recorded_hash_file(row)) as unfinished:  # a link there is replaced, not followed
                    unfinished.write_text(f"{sha256}  {row.filename}\n")
            publish_part(part, target)
            return sha256
        remove_part(part)
    raise WeightsError(
        f"{without_secrets(str(origin))} has {size} bytes of sha256 {sha256}, but {expected} is expected: another "
        "file, or damaged on the way; nothing is kept; try again, or use another source with --from"
    )


def _find_source(row: Published, source: str) -> str | Path:
    """Return the address or path of a file: at the mirror, if there is one, or else the address of the manifest.

    Raise UsageError for a mirror that cannot be used, and WeightsError if its directory lacks the file.
    """
    mirror, option = (source, "--from") if source else (os.environ.get(MIRROR, ""), MIRROR)
    if not mirror:
        return row.url
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise UsageError(f"{option} is not an address: {error}: {without_secrets(mirror)}") from error
    if parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(row.filename)}"))
    if "://" in mirror and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
        raise UsageError(
            f"{option} must be a directory, or begin with http://, https:// or file:///, not be "
            f"{without_secrets(mirror)}"
        )
    directory = Path(os.path.expanduser(url2pathname(parts.path) if parts.scheme == "file" else mirror))
    if not directory.is_dir():
        raise UsageError(f"{option}: there is no directory {directory}")
    if not (directory / row.filename).is_file():
        raise WeightsError(f"{row.name} is not in {directory}: there is no {row.filename} (from {row.url})")
    return directory / row.filename
