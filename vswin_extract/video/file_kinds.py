"""What a file is that cannot be a video, by how it begins."""

import re
import shlex
from pathlib import Path

BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "an array of NumPy",
    b"PK\x03\x04": "a zip archive, as .npz and .pth are",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle of Python"),
    b"%PDF-": "a PDF",
}
"""First bytes of files that no decoder takes for a video."""
PICTURES = b"YUV4MPEG2"
"""First bytes of a video that may look like text: a header in letters, and then raw pictures."""
TABLES = (".csv", ".tsv")
"""Endings of manifests."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""First bytes of text in UTF-16."""
LOOKED_AT = 4096
"""Bytes. Videos have a control character within the first few."""


def other_kind(path: Path) -> str:
    """Return what a file is if it cannot be a video: text, an HDF5 file… Else return "", also for a file that cannot be
    read: its decoder will say why."""
    try:
        with path.open("rb") as file:
            first = file.read(LOOKED_AT)
    except OSError:
        return ""
    for beginning, kind in BEGINNINGS.items():
        if first.startswith(beginning):
            return kind
    if not first:  # a table, but maybe a video that is still to come
        return "empty" if path.suffix.lower() in TABLES else ""
    return "text" if _is_text(first) else ""


def where_it_goes(path: Path) -> str:
    """Return how a file that is no video may have been meant."""
    name = shlex.quote(str(path))
    if path.suffix.lower() in TABLES:
        return f"; a table of videos is given by --manifest {name}, and a list of them on standard input, by -"
    return f"; a list of videos is given on standard input, by - and < {name}, and a .csv or .tsv by --manifest"


def _is_text(first: bytes) -> bool:
    if first.startswith(PICTURES):
        return False
    return first.startswith(UTF16) or not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", first)
