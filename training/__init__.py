"""How the bundled `nano` is trained and judged: `python -m training.train`, `python -m training.evaluate`.

Needs `pip install '.[training]'`, and the photographs that `photographs` names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # whose drawing is shared, and which is no package
