"""What examples that lack a modality cost, compared with leaving them out, in every figure of the evaluation.

    python -m benchmarks.missing                # digits; or a preset or config file of your own
    python -m benchmarks.missing emoji.yaml --steps 2200 --samples 392 --only mask --name missing-emoji

trains one arm with everything, three arms for each modality except the anchor, which half of the training examples then
lack, and one arm without those examples, always the same half. In the second arm of a modality, the examples that have
it are repeated until they are three quarters of the training examples (`labelled_share`), and its `loss_weight` is
divided by that share, as `mmfast init` proposes. In the third, its `given_probability` is divided by it too. All are
measured on the same test set by the same judges. The cost of an arm is the rise of its errors over those of the first
arm: the error of a share is 1 minus the share, that of a distance is the distance itself, and the rises are averaged
geometrically. If stopped, the same command resumes. It writes benchmarks/results/missing.json.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from benchmarks import arms
from mmfast import config as configs
from mmfast.build import build_data
from mmfast.errors import unknown

ALL, LEFT_OUT = "all examples, whole", "half of the examples"
LEAST_ERROR = 1e-4  # the error of a perfect figure, so that a ratio to it is finite


SHARE = 0.75  # of the examples with the modality, if they are repeated


def lacking(name: str, repeated: bool = False, given: bool = False) -> str:
    """An arm's name. repeated: the others are repeated and weighted. given: and given as often as in the base."""
    if given:
        return f"half without {name}, the others repeated, weighted and given"
    return f"half without {name}" + ", the others repeated and weighted" * repeated


def study(base: str, name: str = "missing", only: Sequence[str] = ()) -> arms.Study:
    """The arms of a config, for all modalities or `only` some. Every example has the anchor, so no arm lacks it."""
    config = configs.load(base)
    names = [modality for modality in config.modalities if modality != config.anchor]
    for modality in only:
        if modality not in names:
            raise unknown("--only", modality, names)
    names = [modality for modality in names if modality in only or not only]
    half = {modality: {f"modalities.{modality}.labelled_fraction": "0.5"} for modality in names}
    left_out = {**half[names[0]], f"modalities.{names[0]}.labelled_only": "true"}
    lack = {}
    for modality, change in half.items():
        lack[lacking(modality)] = change
        spec = config.modalities[modality]
        own = spec.given_probability
        given = min(1.0, (config.train.given_probability if own is None else own) / SHARE)
        repeated = {
            **change,
            f"modalities.{modality}.labelled_share": str(SHARE),
            f"modalities.{modality}.loss_weight": f"{spec.loss_weight / SHARE:.3g}",
        }
        lack[lacking(modality, repeated=True)] = repeated
        lack[lacking(modality, given=True)] = {**repeated, f"modalities.{modality}.given_probability": f"{given:.3g}"}
    return arms.Study(name, base, {ALL: {}, **lack, LEFT_OUT: left_out}, build_data)


def cost(found: arms.Found, arm: str, keys: Sequence[str]) -> float:
    """The relative rise of an arm's errors over those of all examples, whole: a geometric mean over the figures, - 1.

    A figure's error is the error of its mean over the seeds.
    """
    return math.exp(statistics.mean(math.log(error(found[arm], key) / error(found[ALL], key)) for key in keys)) - 1


def error(each: Sequence[arms.Figures], key: str) -> float:
    value = statistics.mean(one[key] for one in each)
    return max(LEAST_ERROR, 1 - value if arms.FIGURES[key][1] else value)


def verdicts(found: arms.Found) -> list[str]:
    """The cost if half of the examples lack each modality, and whether it is under half of the last arm's cost."""
    keys, without = arms.measured(found), cost(found, LEFT_OUT, arms.measured(found))
    lines = [f"- {LEFT_OUT}: errors {without:+.1%}"]
    for arm in found:
        if arm not in (ALL, LEFT_OUT):
            lost = cost(found, arm, keys)
            word = "under half of that" if lost < without / 2 else "**not under half of that**"
            lines.append(f"- {arm}: errors {lost:+.1%}, {word}")
    return lines


def main(argv: list[str] | None = None) -> int:
    options = arms.parser("missing", __doc__, steps=3500, samples=1000, seeds=3)
    options.add_argument("base", nargs="?", default="digits", help="a preset or a config file [digits]")
    options.add_argument("--name", default="missing", help="name of the results file, without .json [missing]")
    options.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="modalities with arms [all but the anchor]"
    )
    args = options.parse_args(argv)
    found = study(args.base, args.name, args.only).run(args)
    print(arms.table(found), *verdicts(found), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
