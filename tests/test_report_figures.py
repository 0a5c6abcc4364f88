"""What every family of figures means: its group, whether it should be high, and what real data reach in its place."""

import pytest

from mmfast.report import figures
from mmfast.report.figures import BOUND, DISTANCES, ERROR, HIGHER, LOWER, MODALITIES, OTHER, explain, explained

FAMILIES = {
    "samples": (OTHER, "", "", "How many samples"),
    "label.joint_accuracy": (MODALITIES, HIGHER, "", "does label agree with the image generated with it? The share"),
    "a.b.conditional_rmse": (MODALITIES, LOWER, "", "Given the a.b of held-out examples: "),
    "mask.recovered_iou": (
        MODALITIES,
        HIGHER,
        "",
        "the mask predicted from each the true one? Intersection over union",
    ),
    "image.recovered_lpips_alex": (MODALITIES, LOWER, "", "Perceptual distance (LPIPS over AlexNet)."),
    "frechet.samples": (DISTANCES, LOWER, "frechet.real_halves", "over pixels: 0 for"),
    "frechet_vgg16@64.samples": (DISTANCES, LOWER, "frechet_vgg16@64.real_halves", "over the features of vgg16@64: "),
    "precision.samples": (DISTANCES, HIGHER, "precision.real_halves", "The share of the samples that lie among"),
    "recall_a.b.samples": (DISTANCES, HIGHER, "recall_a.b.real_halves", "The share of the real images that lie among"),
    "frechet.real_halves": (DISTANCES, "", "", "one half of the real images against the other, over pix"),
    "recall_x.real_halves": (DISTANCES, "", "", "over the features of x."),
    "row.ks.samples": (DISTANCES, LOWER, "row.ks.real_halves", "distance of row to real rows"),
    "row.energy.samples": (DISTANCES, LOWER, "row.energy.real_halves", "whole rows of row to real ones"),
    "row.ks.real_halves": (DISTANCES, "", "", "one half of the real rows of row against"),
    "row.energy.real_halves": (DISTANCES, "", "", "one half of the real rows of row against"),
    "label.logistic_regression_accuracy": (MODALITIES, HIGHER, "", "predicts the label of held-out rows"),
    "bound.L0": (BOUND, LOWER, "", "at t = T, nats per example; near 0"),
    "bound.L0_bits": (BOUND, LOWER, "", "at t = T, bits per dimension of the image; near 0"),
    "bound.L1": (BOUND, LOWER, "", "t = 2 to T, nats per example."),
    "bound.fitted.L1_bits": (BOUND, LOWER, "", "image, with reverse variances fitted to training data."),
    "bound.L2": (BOUND, LOWER, "", "the heads of the other modalities, nats per example."),
    "bound.nearer.L3": (BOUND, LOWER, "", "nats per example, with fitted variances, and z_t itself in place"),
    "bound.pixels_bits": (
        BOUND,
        LOWER,
        "",
        "The image's share of the bound on -ln p, bits per dimension of the image.",
    ),
    "bound.discrete.label": (BOUND, LOWER, "", "The share of label in the bound on -ln p, nats per example."),
    "bound.fitted.discrete.my.mask_bits": (
        BOUND,
        LOWER,
        "",
        "The share of my.mask in the bound on -ln p, bits per exa",
    ),
    "bound.nearer.density.row": (BOUND, LOWER, "", "The share of row in the bound, nats per example, with fitted"),
    "x0_error.40": (ERROR, LOWER, "", "at t = 40, nothing given"),
    "x0_error.1234567890": (OTHER, "", "", "No description"),
    "xframes.samples2": (OTHER, "", "", "No description"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_figure_and_what_it_means(name):
    group, better, reference, words = FAMILIES[name]
    found = explain(name)
    assert (found.name, found.group, found.better, found.reference) == (name, group, better, reference)
    assert words in found.meaning and "{" not in found.meaning and found.meaning.endswith((".", "?"))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_an_image_none_is_spoken_of(name):
    said = explain(name, "row").meaning
    if "_lpips_" not in name:
        assert "image" not in said and "pixel" not in said
    if name in ("bound.L1_bits", "frechet.samples", "x0_error.40"):
        assert "row" in said


def test_groups_are_in_their_order_and_a_reference_stands_beside():
    names = ["samples", "x0_error.1", "bound.L1", "label.joint_iou", "frechet.real_halves", "frechet.samples", "odd",
             "recall.real_halves"]  # fmt: skip
    found = {group: [figure.name for figure in these] for group, these in explained(names).items()}
    assert [*found.items()] == [
        (DISTANCES, ["frechet.samples", "recall.real_halves"]),
        (MODALITIES, ["label.joint_iou"]),
        (BOUND, ["bound.L1"]),
        (ERROR, ["x0_error.1"]),
        (OTHER, ["samples", "odd"]),
    ]
    lower = {"rmse", "lpips_alex", "lpips_vgg"}
    assert {name for name, (better, _) in figures.SCORES.items() if better == LOWER} == lower
