"""python -m tests.fuzz [--inputs 100000] [--seed S] [--kind checkpoint|config|command|data|ops] [--only N]"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import kinds, pool

SHARES = {"ops": 0.6, "config": 0.16, "checkpoint": 0.08, "command": 0.08, "data": 0.08}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all kinds, in set shares [100000]")
    parser.add_argument("--seed", default="0", help="the inputs are a function of it and their number [0]")
    parser.add_argument("--kind", choices=[*SHARES], help="only these")
    parser.add_argument("--only", type=int, metavar="N", help="the input of this number again, with what it says")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin at this number [0]")
    parser.add_argument("--jobs", type=int, default=2, help="processes [2]")
    args = parser.parse_args()
    chosen = {args.kind: 1.0} if args.kind else SHARES
    faults = 0
    for name, share in chosen.items():
        count = round(args.inputs * share)
        numbers = [args.only] if args.only is not None else range(args.first, args.first + count)
        began, found = time.monotonic(), Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            kind = kinds.prepared(name, Path(folder))
            for outcome in pool.run(kind, f"{args.seed} {name}", numbers, args.jobs, Path(folder), args.only is None):
                found[outcome.what] += 1
                if outcome.fault or args.only is not None:
                    print(f"--- {name} {outcome.number}: {outcome.fault or outcome.error}", flush=True)
        faults += found["fault"]
        print(
            f"{name:<11} {sum(found.values()):>7,} inputs: {found['result']:>7,} results, {found['error']:>7,} errors, "
            f"{found['fault']:>4,} faults ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
