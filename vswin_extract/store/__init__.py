"""The output: rows of clips become an HDF5 file, and the file is read again by video.

In come blocks of rows with the records of their videos; out comes a file that needs nothing but HDF5 to be read.
schema.py names its datasets and columns. Writing: layouts.py chooses between one file and shards behind an index,
shards.py names shards and removes those that nothing needs any more, write.py writes one file, and columns.py fills its
datasets. Reading: features.py opens a file as a mapping from video id to lazy rows. hdf5.py holds what both sides
share. Nothing is read before structure.py has checked a file, with attributes.py, heaps.py and, for an index, links.py:
an output may come from a stranger.
"""
