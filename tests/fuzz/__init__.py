"""Fuzzed inputs: each ends as a result that is right, or as an error of one line. `python -m tests.fuzz --help`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "support")]
