"""What the figures of metrics.json mean: one rule per family, found by the figure's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

HIGHER, LOWER = "higher is better", "lower is better"

# The scores of modalities: name, whether higher or lower is better, and meaning.
SCORES = {
    "accuracy": (HIGHER, "the share that is right, 0 to 1"),
    "agreement": (HIGHER, "the share that agrees, 0 to 1"),
    "iou": (HIGHER, "intersection over union, the mean over the classes except the background, 0 to 1"),
    "cosine": (HIGHER, "the cosine of the angle between the two, -1 to 1"),
    "rmse": (LOWER, "root mean square difference of values in -1 to 1 (pictures) or standardised (tables)"),
    "lpips_alex": (LOWER, "perceptual distance (LPIPS over AlexNet)"),
    "lpips_vgg": (LOWER, "perceptual distance (LPIPS over VGG)"),
}
MODALITIES, DISTANCES = "Modalities against each other", "Samples against real data"
BOUND, ERROR, OTHER = "Bound on held-out data", "Error of the prediction", "Other figures"


@dataclass(frozen=True)
class Figure:
    """What a figure means. reference: the name of the same figure between real data; "" for none."""

    name: str
    group: str
    meaning: str
    better: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Rule:
    """Figures whose whole name matches `pattern`. Its groups and `IMAGE` fill in `meaning` and `reference`."""

    pattern: str
    group: str
    meaning: str
    better: str = ""
    reference: str = ""


SCORE = "|".join(SCORES)
# The words to use if the anchor is an image.
IMAGE = {
    "anchor": "image",
    "reals": "real images",
    "numbers": "pixels",
    "scale": "; pixels lie in -1 to 1",
}
REVERSE = {
    None: "",
    "fitted": ", with reverse variances fitted to training data",
    "nearer": ", with fitted variances, and z_t itself in place of the network's prediction where that errs less",
}
UNITS = {None: "nats per example", "_bits": "bits per dimension of the {anchor}"}
# The bound of a modality is given per example and not per dimension.
UNITS_OF_ONE = {None: "nats per example", "_bits": "bits per example"}
PROCESS = r"bound\.(?:(?P<process>fitted|nearer)\.)?"
REAL = "{kind}{features}.real_halves"

RULES = (
    Rule("samples", OTHER, "How many samples of each direction are measured."),
    Rule(
        rf"(?P<name>.+)\.joint_(?P<score>{SCORE})",
        MODALITIES,
        "Both generated from noise: does {name} agree with the {anchor} generated with it? {says}, by the data's "
        "judge.",
    ),
    Rule(
        rf"(?P<name>.+)\.conditional_(?P<score>{SCORE})",
        MODALITIES,
        "Given the {name} of held-out examples: does the {anchor} generated from it show it? {says}.",
    ),
    Rule(
        rf"(?P<name>.+)\.recovered_(?P<score>{SCORE})",
        MODALITIES,
        "Given held-out {reals}: is the {name} predicted from each the true one? {says}.",
    ),
    Rule(
        r"(?P<kind>frechet)(?P<features>(?:_.+)?)\.samples",
        DISTANCES,
        "Frechet distance of the samples to {reals}, over {over}: 0 for the same distribution.",
        LOWER,
        REAL,
    ),
    Rule(
        r"(?P<kind>precision)(?P<features>(?:_.+)?)\.samples",
        DISTANCES,
        "The share of the samples that lie among the {reals}, over {over}, 0 to 1: are they good?",
        HIGHER,
        REAL,
    ),
    Rule(
        r"(?P<kind>recall)(?P<features>(?:_.+)?)\.samples",
        DISTANCES,
        "The share of the {reals} that lie among the samples, over {over}, 0 to 1: are they varied?",
        HIGHER,
        REAL,
    ),
    Rule(
        r"(?P<kind>frechet|precision|recall)(?P<features>(?:_.+)?)\.real_halves",
        DISTANCES,
        "The same figure for one half of the {reals} against the other, over {over}.",
    ),
    Rule(
        r"(?P<name>.+)\.ks\.samples",
        DISTANCES,
        "Kolmogorov-Smirnov distance of {name} to real rows, the mean over its columns, 0 to 1.",
        LOWER,
        "{name}.ks.real_halves",
    ),
    Rule(
        r"(?P<name>.+)\.energy\.samples",
        DISTANCES,
        "Energy distance of whole rows of {name} to real ones, standardised: 0 for the same distribution.",
        LOWER,
        "{name}.energy.real_halves",
    ),
    Rule(
        r"(?P<name>.+)\.(?:ks|energy)\.real_halves",
        DISTANCES,
        "The same figure for one half of the real rows of {name} against the other.",
    ),
    Rule(
        r"(?P<name>.+)\.logistic_regression_accuracy",
        MODALITIES,
        "For comparison: how often scikit-learn's logistic regression, fitted to the training rows, predicts the "
        "{name} of held-out rows correctly.",
        HIGHER,
    ),
    Rule(
        r"bound\.L0(?P<unit>_bits)?",
        BOUND,
        "L0: what is left of the data at t = T, {units}; near 0 when the schedule is long enough.",
        LOWER,
    ),
    Rule(PROCESS + r"L1(?P<unit>_bits)?", BOUND, "L1: the denoising steps t = 2 to T, {units}{how}.", LOWER),
    Rule(r"bound\.L2(?P<unit>_bits)?", BOUND, "L2: the heads of the other modalities, {units}.", LOWER),
    Rule(PROCESS + r"L3(?P<unit>_bits)?", BOUND, "L3: the last step, to the {anchor}, {units}{how}.", LOWER),
    Rule(
        PROCESS + r"pixels(?P<unit>_bits)?",
        BOUND,
        "The {anchor}'s share of the bound on -ln p, {units}{how}.",
        LOWER,
    ),
    Rule(
        PROCESS + r"discrete\.(?P<name>.+?)(?P<one>_bits)?",
        BOUND,
        "The share of {name} in the bound on -ln p, {units}{how}.",
        LOWER,
    ),
    Rule(
        PROCESS + r"density\.(?P<name>.+)",
        BOUND,
        "The share of {name} in the bound, nats per example{how}. It is of a density, so it may be negative and must "
        "not be added to the others.",
        LOWER,
    ),
    Rule(
        r"x0_error\.(?P<t>[0-9]{1,9})",
        ERROR,
        "Mean squared error of the {anchor} predicted from z_t at t = {t}, nothing given{scale}.",
        LOWER,
    ),
)


def explain(name: str, anchor: str = "", latents: bool = False) -> Figure:
    """The meaning of a figure of metrics.json, or a placeholder if no rule matches its name.

    anchor: the anchor's name if it is not an image. latents: whether an image is diffused as an autoencoder's latents.
    """
    for rule in RULES:
        if found := re.fullmatch(rule.pattern, name):
            return _filled(name, rule, found.groupdict(), anchor, latents)
    return Figure(name, OTHER, "No description of this figure in this version of mmfast.")


def _filled(name: str, rule: Rule, groups: dict[str, str | None], anchor: str, latents: bool) -> Figure:
    other = {
        "anchor": anchor,
        "reals": "real examples",
        "numbers": f"the numbers of {anchor}",
        "scale": "",
    }
    diffused = other if anchor else IMAGE | ({"scale": "; of its latents"} if latents else {})
    better, says = SCORES.get(groups.get("score") or "", (rule.better, ""))
    features = (groups.get("features") or "").removeprefix("_")
    units = UNITS_OF_ONE[groups["one"]] if "one" in groups else UNITS[groups.get("unit")]
    words = {
        **groups,
        **diffused,
        "says": says[:1].upper() + says[1:],
        "over": f"the features of {features}" if features else diffused["numbers"],
        "units": units.format(**diffused),
        "how": REVERSE[groups.get("process")],
    }
    return Figure(name, rule.group, rule.meaning.format(**words), better, rule.reference.format(**words))


def explained(names: Iterable[str], anchor: str = "", latents: bool = False) -> dict[str, list[Figure]]:
    """The meanings by group, in the groups' order. Figures shown as the reference of another are not repeated."""
    figures = [explain(name, anchor, latents) for name in names]
    shown_beside = {figure.reference for figure in figures}
    groups: dict[str, list[Figure]] = {name: [] for name in (DISTANCES, MODALITIES, BOUND, ERROR, OTHER)}
    for figure in figures:
        if figure.name not in shown_beside:
            groups[figure.group].append(figure)
    return {name: group for name, group in groups.items() if group}
