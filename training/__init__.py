"""Train and evaluate the bundled `nano`: `python -m training.train`, `python -m training.evaluate`.

`photographs` and examples/textures.py give scenes, `batches` draws clips of them, `objective` computes the losses of
the network in `student`, with the features of `teacher`, and `train` runs the phases. It needs
`pip install '.[training]'` and the pictures of the Debian packages that `photographs` names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # for drawing.py and textures.py; it is not a package
