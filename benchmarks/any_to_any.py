"""Any modality given any others: `python -m benchmarks.any_to_any` is `python -m benchmarks.paper any-to-any`."""

from __future__ import annotations

import sys

from benchmarks.paper.__main__ import begin

if __name__ == "__main__":
    sys.exit(begin(["any-to-any", *sys.argv[1:]]))
