"""`python -m mmfast` is the command `mmfast`."""

import os
import sys
from typing import Any

from mmfast.errors import MmfastError
from mmfast.signals import STOPPED, answered, end_at_once


def _stop(number: int, frame: Any) -> None:
    """Nothing has been done yet that could be lost, and an exception would come out of the middle of an import."""
    try:
        os.write(2, b"mmfast: stopped before it had begun\n")
    finally:
        os._exit(STOPPED)


def main() -> int:
    """`mmfast.cli.main`, whose imports take seconds: Ctrl-C is one line meanwhile, too."""
    try:
        with answered(_stop):
            from mmfast.cli import main as command
        return command()
    except MmfastError as error:  # of the imports: a variable of the environment that is not right
        print(f"mmfast: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between the two, or a second one
        return STOPPED
    finally:
        end_at_once()


if __name__ == "__main__":
    sys.exit(main())
