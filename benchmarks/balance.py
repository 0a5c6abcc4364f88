"""The balance of the losses on digits with label and mask: the config's weights, equal ones, and automatic ones.

    python -m benchmarks.balance

trains every arm with every seed on nine tenths of the training digits and measures it on the remaining tenth, so that
nothing is chosen on the test set. If stopped, the same command resumes. It writes benchmarks/results/balance.json.
"""

from __future__ import annotations

from benchmarks import arms
from mmfast.build import build_data
from mmfast.config import Config
from mmfast.data import Data
from mmfast.data.base import InMemory

# By arm, the overrides of the preset.
EVEN = {"modalities.label.loss_weight": "1", "modalities.mask.loss_weight": "1"}
ARMS: dict[str, dict[str, str]] = {
    "the preset's weights": {},
    "all weights 1": EVEN,
    "uncertainty": {**EVEN, "loss.balance": "uncertainty"},
    "gradient norms": {**EVEN, "loss.balance": "gradient_norm"},
}
SHARE = 10  # one in so many training examples is for validation


def validation(config: Config) -> Data:
    """The training set split in two: nine tenths to train on, a tenth to measure on."""
    found = build_data(config)
    rows = range(len(found.train))
    held, seen = [k for k in rows if k % SHARE == 0], [k for k in rows if k % SHARE]
    parts = [InMemory(found.train.__getitems__(some).data) for some in (seen, held)]
    return Data(*parts, found.judges)


STUDY = arms.Study("balance", "digits", ARMS, validation)


def main(argv: list[str] | None = None) -> int:
    args = arms.parser("balance", __doc__, steps=1000, samples=432, seeds=2).parse_args(argv)
    print(arms.table(STUDY.run(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
