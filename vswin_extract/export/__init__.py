"""An output as the files that other projects load, with a configuration from which they compute the right times.

In comes an output; out comes a folder. `export` (export.py) checks what the format can hold, reads the videos one by
one, and writes the folder. names.py compares the names of all files before one is written, grid.py verifies every
stored time against the formula of a format that computes times from row numbers, formats.py writes the features (HDF5
by guarded.py, which survives a full disk), and configuration.py makes the texts that are written beside them.
ten_crop.py and summary.py are the formats of networks that find anomalies, and of networks that summarise videos.
"""
