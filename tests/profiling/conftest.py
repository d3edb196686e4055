"""Makes the helpers of these tests importable: pytest's importlib mode leaves their folder out of the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
