"""Any modality given any others: `python -m benchmarks.any_to_any` is `python -m benchmarks.paper any-to-any`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.paper.__main__ import begin


def main(argv: Sequence[str]) -> int:
    return begin(["any-to-any", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
