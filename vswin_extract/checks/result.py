"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

CheckState = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """`what` was checked, what was `found`, and `advice`: what to do if the state is not "ok"."""

    what: str
    state: CheckState
    found: str
    advice: str = ""
