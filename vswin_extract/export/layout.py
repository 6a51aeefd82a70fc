"""How the files of videos are called, and how their arrays lie, as the user chooses it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError

ACCEPTED = {
    "--suffix": ("actionformer", "opentad", "npy", "npz", "csv"),
    "--key": ("actionformer", "npz"),
    "--transpose": ("npy", "npz"),
}
"""Which formats take which option."""
RESERVED = ("times", "file", "allow_pickle")
"""Keys of .npz files that are ours, or parameters of np.savez."""


@dataclass(frozen=True)
class FileLayout:
    """`stem`: name a video's files by its id without the extension. `suffix`: comes between that name and the ending,
    as in a_rgb.npy. `key`: the name of an array in .npz files. `transpose`: channels first, (C, T)."""

    stem: bool = False
    suffix: str = ""
    key: str | None = None
    transpose: bool = False

    def expect_fits(self, format: str) -> None:
        """Raise UsageError if the format does not take an option, or not this value."""
        given = {"--suffix": self.suffix, "--key": self.key, "--transpose": self.transpose}
        for option, value in given.items():
            if value and format not in ACCEPTED[option]:
                raise UsageError(f"{option} goes with {', '.join(ACCEPTED[option])}, not with {format}")
        if "/" in self.suffix or "\0" in self.suffix:
            raise UsageError(f"a suffix is a part of a file's name, not {self.suffix!r}")
        if self.key is not None and (not self.key.isidentifier() or self.key in RESERVED):
            raise UsageError(
                f"a key is a name as features or feats, and none of {', '.join(RESERVED)}, not {self.key!r}"
            )
        if format == "actionformer" and self.key not in (None, "feats"):
            raise UsageError(f"ActionFormer reads the key feats of .npz files, not {self.key!r}")

    def arrange(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows of a video as they are to be written."""
        return np.ascontiguousarray(np.moveaxis(values, -1, 0)) if self.transpose else values
