"""What Python programs get: a model that takes video files, features in memory, outputs that can be searched.

Video files come in, or an output; features of videos, results and tables go out. model.py is the model of `load_model`:
a backbone that also takes video files. stream.py takes videos through a worker, as a run does, and keeps their rows in
memory. memory.py holds the features of one such video. opened.py is the output that `open_features` opens.
"""
