"""`python -m mmfast` is the command `mmfast`."""

import os
import sys
from typing import Any

from mmfast.errors import MmfastError
from mmfast.signals import STOPPED, answered, end_at_once


def _stop(number: int, frame: Any) -> None:
    """End at once: there is no work to lose yet, and an exception would surface in the middle of an import."""
    try:
        os.write(2, b"mmfast: stopped before it had begun\n")
    finally:
        os._exit(STOPPED)


def main() -> int:
    """Run `mmfast.cli.main`. Its imports take seconds, during which Ctrl-C also prints only one line."""
    try:
        with answered(_stop):
            from mmfast.cli import main as command
        return command()
    except MmfastError as error:  # from the imports: an invalid environment variable
        print(f"mmfast: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between the two handlers, or a second Ctrl-C
        return STOPPED
    finally:
        end_at_once()


if __name__ == "__main__":
    sys.exit(main())
