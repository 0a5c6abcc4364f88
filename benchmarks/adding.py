"""A modality added to a trained model (`mmfast train ... --from RUN`), against training everything from nothing.

    python -m benchmarks.adding                 # digits; or a preset or config file of your own
    python -m benchmarks.adding --given-probability 0.7 --validate

trains one arm with everything and, for each modality except the anchor, one without it. From the weights of each of
these it trains one with everything for a third of the steps. --set and --given-probability change only this stage. To
choose options, --validate measures on a tenth of the training examples, which are then not trained on. An arm is within
5 per cent in a figure if its mean over the seeds is at most so much worse: lower, or higher for a distance. If stopped,
the same command resumes. It writes benchmarks/results/adding.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks import arms
from benchmarks.balance import validation
from mmfast import config as configs
from mmfast.build import build_data

ALL, SHARE, BEHIND = "everything from nothing", 1 / 3, 0.05


def without(name: str) -> str:
    return f"without {name}"


def added(name: str) -> str:
    return f"{name} added in a third of the steps"


def study(
    base: str, changes: Mapping[str, str], given_probability: float | None = None, validate: bool = False
) -> arms.Study:
    """The arms of a config. changes, given_probability: options of the added stage, and of the added modality there."""
    config = configs.load(base)
    names = [name for name in config.modalities if name != config.anchor]
    first = {without(name): name for name in names}
    then = {added(name): dict(changes) for name in names}
    if given_probability is not None:
        for name in names:
            then[added(name)][f"modalities.{name}.given_probability"] = str(given_probability)
    after = {added(name): (without(name), SHARE) for name in names}
    data = validation if validate else build_data
    return arms.Study("adding", base, {ALL: {}, **{name: {} for name in first}, **then}, data, first, after)


def behind(found: arms.Found, arm: str, key: str) -> float:
    """How much worse an arm is, as a share of the figure of everything from nothing; negative if better."""
    mean, whole = (statistics.mean(one[key] for one in found[name]) for name in (arm, ALL))
    return (whole - mean if arms.FIGURES[key][1] else mean - whole) / whole


def compared(found: arms.Found) -> arms.Found:
    """The arms that have every modality."""
    return {arm: each for arm, each in found.items() if not arm.startswith(without(""))}


def verdicts(found: arms.Found) -> list[str]:
    """For each added modality, how many figures are within 5 per cent, and the worst one."""
    keys, lines = arms.measured(found), []
    for arm in found:
        if arm != ALL:
            by = {key: behind(found, arm, key) for key in keys}
            worst = max(by, key=lambda key: by[key])
            near = sum(value <= BEHIND for value in by.values())
            lines.append(f"- {arm}: {near} of {len(by)} figures within 5 per cent; {worst} {by[worst]:+.1%}")
    return lines


def main(argv: list[str] | None = None) -> int:
    options = arms.parser("adding", __doc__, steps=3500, samples=1000, seeds=3)
    options.add_argument("base", nargs="?", default="digits", help="a preset or a config file [digits]")
    options.add_argument("--validate", action="store_true", help="measure on a part of the training data")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the added stage alone"
    )
    options.add_argument(
        "--given-probability",
        type=float,
        metavar="P",
        help="how often the added modality is given there [as in the base]",
    )
    args = options.parse_args(argv)
    for pair in args.set:
        if "=" not in pair:
            options.error(f"--set {pair}; it should be KEY=VALUE, as train.learning_rate=0.001")
    if args.validate and args.out == arms.RESULTS:
        args.out = Path(args.work)
    changes = dict(pair.split("=", 1) for pair in args.set)
    found = compared(study(args.base, changes, args.given_probability, args.validate).run(args))
    print(arms.table(found), *verdicts(found), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
