"""An output as the files that other projects load, with a configuration from which they compute the right times.

In comes an output; out comes a folder. `export` (export.py) checks what the format can hold, reads the videos one by
one, and writes the folder. layout.py has the user's choice of names and axes, and names.py compares the names of all
files before one is written. grid.py finds the numbers that give every stored time, configuration.py and annotations.py
write them as a project reads them, and formulas.py has what the project computes from them, which is compared with the
stored times. formats.py writes the features (HDF5 by guarded.py, which survives a full disk).
ten_crop.py and summary.py are the formats of networks that find anomalies, and of networks that summarise videos.
"""
