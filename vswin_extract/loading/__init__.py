"""Features for other models: the rows of a video as a sequence, and an output as a dataset of PyTorch or a table.

In comes an open output; out come arrays. sequences.py averages maps, resamples a video to a length and normalises its
rows. dataset.py does that for all videos of an output, and makes batches of them; it is the only file here that imports
torch. table.py makes a table of pandas.
"""
