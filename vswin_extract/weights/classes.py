"""Names of the classes of public data sets, where a list may travel with this package.

That is Kinetics-400. Of Kinetics-600, -700 and -710 and of Something-Something v2 no installable package has a list
under a licence that allows it, so their classes are numbers, in the order of the training labels.
"""

from functools import cache
from pathlib import Path

LISTS = {"Kinetics-400": "kinetics400.txt"}


@cache
def class_names(dataset: str, count: int) -> tuple[str, ...]:
    """The names of a data set's `count` classes in the order of the published heads; none where they are not known."""
    if dataset not in LISTS:
        return ()
    lines = Path(__file__).with_name(LISTS[dataset]).read_text("utf-8").splitlines()
    names = tuple(line for line in lines if line and not line.startswith("#"))
    return names if len(names) == count else ()
