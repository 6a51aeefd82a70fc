"""Exports in the code of the projects that read them.

`configurations.py` has the configurations of these projects, by their published names and numbers, and reads ours. The
tests put ours in the place of theirs and compute times by `vswin_extract.export.formulas`. No project is needed for it.

    python -m tests.downstream CHECKOUTS [PROJECT ...]

runs the projects' own dataset classes, and their own code from rows to seconds, on exports of `exports.py`, and prints
a table. CHECKOUTS is a folder with a clone of each project, called by its name (see `__main__.py`); a library is
imported as it is installed. A project that is not there, or lacks a package, is said to be so.
"""
