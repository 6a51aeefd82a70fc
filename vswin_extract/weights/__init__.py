"""A name or a file becomes a checked state dict with its recipe.

What comes in is a name (`nano`, or one of the manifest) or a checkpoint file of any known layout. What goes out is a
`Checkpoint`: a state dict under our parameter names that fits its variant exactly, and what is known about it. In the
order in which the data passes the files: `registry` reads the manifest `weights.toml` (`recipe` is a part of each row);
`cache` finds the file of a name; `pull` brings a missing file into the cache, by `download` (HTTP) and `part` (the
unfinished file). `load` reads a file: `layouts` renames its tensors, `inflation` makes 3D weights of 2D ones, and `fit`
checks names and shapes against the network. `checkpoints` defines `Checkpoint` and writes our own file format.
"""
