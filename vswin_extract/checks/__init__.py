"""Checks of finished and unfinished outputs, of weights, and of this machine.

An output, weights or a directory come in; problems and values `Check` (result.py) go out, and nothing is changed.
output.py checks an output, or the journal of an unfinished run, against its own checksums and the videos; views.py
checks what an output shows twice. weights.py
describes weights, verifies them, and looks at the cache. machine.py checks this machine in this order: versions, cores,
memory and open files by itself, then devices.py, decoders.py, weights.py, file_system.py, and at last the network on
the usual device, which golden_features.py compares with the stored features of golden.py. gpu.py is one minute of
numbers and times of a GPU.
"""
