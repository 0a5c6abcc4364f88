"""Each modality: encodings of unit RMS, a head whose expected encoding is exact when it is sure, loss and score."""

import math

import pytest
import torch
from scipy import stats

from mmfast import MmfastError, modalities
from mmfast.modalities import SpaceShape
from mmfast.modalities.base import code, head_norm, one_head

B, SIZE = 64, 8
OPTIONS = {
    "image": {"channels": 3, "size": SIZE},
    "mask": {"classes": 4, "size": SIZE},
    "label": {"classes": 5},
    "embedding": {"dim": 24},
}
DATA = {
    "image": lambda g: torch.rand(B, 3, SIZE, SIZE, generator=g) * 2 - 1,
    "mask": lambda g: torch.randint(0, 4, (B, SIZE, SIZE), generator=g),
    "label": lambda g: torch.randint(0, 5, (B,), generator=g),
    "embedding": lambda g: torch.randn(B, 24, generator=g) * 3,
}


def make(kind, encoder="fixed", channels=None):
    part = modalities.kind(kind)
    torch.manual_seed(0)
    made = part("x", part.Spec(encoder=encoder, **OPTIONS[kind]), SpaceShape(SIZE, SIZE, channels))
    made.build_head(12)
    return made, DATA[kind](torch.Generator().manual_seed(1))


def sure(kind, part, x):
    """The head's output when it knows x."""
    if kind in ("mask", "label"):
        onehot = torch.nn.functional.one_hot(x, part.spec.classes).float() * 200
        return onehot.permute(0, 3, 1, 2) if kind == "mask" else onehot
    return x / x.square().mean(1, keepdim=True).sqrt() if kind == "embedding" else x


def test_every_file_of_the_folder_is_a_kind():
    # Those that have a file of tests of their own.
    assert set(modalities.KINDS) == {*OPTIONS, "masked", "feature_map", "table", "caption"}


def test_a_kind_that_there_is_not_is_named():
    with pytest.raises(MmfastError, match=r"modality kind is 'masks'; .*did you mean 'mask'"):
        modalities.kind("masks")


def test_a_head_normalises_at_least_four_channels_together():
    groups = {128: 32, 160: 32, 96: 16, 64: 16, 32: 8, 24: 4, 16: 4, 8: 2, 12: 2, 6: 1, 4: 1, 7: 1}
    assert {features: head_norm(features)[0].num_groups for features in groups} == groups


def test_a_labels_loss_is_its_nll_and_its_tally_counts_every_class():
    part, x = make("label")
    logits = torch.randn(B, 5, generator=torch.Generator().manual_seed(2))
    rows = zip(logits.tolist(), x.tolist(), strict=True)
    want = [math.log(sum(map(math.exp, row))) - row[k] for row, k in rows]
    for found in (part.loss(logits, x), part.nll(logits, x)):
        assert found.tolist() == pytest.approx(want, rel=1e-5)
    assert part.tally(torch.tensor([3, 1, 3])).tolist() == [0, 1, 0, 2, 0]


def test_the_loss_of_a_vector_is_the_mean_square_from_it_at_unit_rms():
    part, x = make("embedding")
    said = torch.randn(B, 24, generator=torch.Generator().manual_seed(2))
    unit = x.double() / x.double().square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(part.loss(said, x).double(), (said - unit).square().mean(1), atol=1e-5, rtol=0)


def test_a_class_without_a_name_is_called_by_its_number():
    assert [make(kind)[0].class_name(3) for kind in ("mask", "label")] == ["3", "3"]


def test_the_heads_of_what_an_image_has_one_of():
    """Of the last features, the means of 4 x 4 parts; of the encoder, its numbers."""
    pooled, reader = one_head("decoder", 3, 5), one_head("encoder", 3, 5)
    assert [tuple(p.shape) for p in pooled.parameters()] == [(48,), (48,), (128, 48), (128,), (5, 128), (5,)]
    assert [tuple(p.shape) for p in reader.parameters()] == [(3,), (3,), (128, 3), (128,), (5, 128), (5,)]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(pooled(x), pooled(parts))
    assert pooled(x).shape == reader(torch.randn(2, 3)).shape == (2, 5)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("encoder", ["fixed", "learned"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_encodings_have_unit_rms_and_the_head_can_give_them_back(kind, encoder, channels):
    part, x = make(kind, encoder, channels)
    E = part.encode(x)
    assert E.shape[:2] == (B, part.channels) and set(E.shape[2:]) <= {1, SIZE}
    assert channels is None or part.channels == channels
    rms = float(E.detach().square().mean().sqrt())
    # Uniform pixels on -1 .. 1 have an RMS of 0.577, which a fixed image encoding divides by 0.5, the data's; the rows
    # of the codes all have unit RMS.
    low, high = (1.13, 1.18) if kind == "image" and encoder == "fixed" else (0.999, 1.001)
    assert low < rms < high
    assert torch.allclose(part.encode_prediction(sure(kind, part, x)), E, atol=1e-5)
    if encoder == "learned":
        E.sum().backward()
        learned = [p.grad for n, p in part.named_parameters() if not n.startswith(("norm", "out"))]
        assert learned and all(g is not None and float(g.abs().sum()) > 0 for g in learned)


@pytest.mark.parametrize(
    ("classes", "width"), [(2, 1), (4, 3), (10, 9), (5, 5), (5, 6), (10, 64), (7, 3), (5, 1), (1, 2)]
)
def test_codes_are_distinct_and_of_unit_rms(classes, width):
    rows = code(classes, width)
    assert rows.shape == (classes, width)
    assert float(rows.square().mean().sqrt()) == pytest.approx(1, abs=1e-5)
    if classes > 1:
        assert float(torch.pdist(rows).min()) > 0.1
    if 1 < classes <= width + 1 and width > 1:
        # The corners of a regular simplex: every pair is equally far apart, at 2 c / (c - 1) of the squared radius.
        expected = math.sqrt(2 * classes / (classes - 1) * width)
        assert torch.allclose(torch.pdist(rows), torch.tensor(expected), rtol=1e-4)


@pytest.mark.parametrize("kind", OPTIONS)
def test_nll_is_the_density_of_scipy(kind):
    part, x = make(kind)
    read = (B, 12) if part.reads == "encoder" else (B, 12, SIZE, SIZE)
    prediction = part.head(torch.randn(read, generator=torch.Generator().manual_seed(2))).detach()
    if kind in ("image", "embedding"):
        truth = x if kind == "image" else x / x.square().mean(1, keepdim=True).sqrt()
        density = stats.norm(prediction.double().numpy(), part.spec.sigma).logpdf(truth.double().numpy())
    else:
        p = torch.softmax(prediction.double(), 1)
        density = p.gather(1, x[:, None]).log().numpy()
    expected = -density.reshape(B, -1).sum(1)
    assert part.nll(prediction, x).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", OPTIONS)
def test_decoding_what_is_sure_scores_perfectly(kind):
    part, x = make(kind)
    perfect = {"rmse": 0.0}.get(part.metric, 1.0)
    assert part.score(part.decode(sure(kind, part, x)), x) == pytest.approx(perfect, abs=1e-6)
    worse = part.score(part.decode(sure(kind, part, x.roll(1, 0))), x)
    assert worse > perfect + 0.1 if part.metric == "rmse" else worse < perfect - 0.1


def test_iou_is_intersection_over_union():
    part, _ = make("mask")
    a, b = torch.zeros(1, SIZE, SIZE, dtype=torch.long), torch.zeros(1, SIZE, SIZE, dtype=torch.long)
    a[0, :4], b[0, 2:6] = 1, 1  # 32 and 32 pixels, 16 in common; the other classes are nowhere
    assert part.score(a, b) == pytest.approx(16 / 48)


@pytest.mark.parametrize("kind", OPTIONS)
def test_pictures_have_the_size_asked_for(kind):
    part, x = make(kind)
    picture = part.show(x[0], 40)
    assert picture.size == (40, 40) and picture.mode == "RGB"
    assert (
        len(set(picture.getdata() if not hasattr(picture, "get_flattened_data") else picture.get_flattened_data())) > 1
    )


@pytest.mark.parametrize("kind", OPTIONS)
def test_bad_batches_are_named(kind):
    part, x = make(kind)
    part.check(x, "x")
    bad = x.clone()
    if x.is_floating_point():
        bad.view(-1)[5] = float("nan")
    else:
        bad.view(-1)[5] = part.spec.classes
    for wrong in (bad, x[:, :1] if x.dim() > 1 else x[:, None], x.to(torch.int16)):
        with pytest.raises(ValueError, match=r"^data: x"):
            part.check(wrong, "data: x")


def test_pixels_of_another_range_are_refused():
    kind = modalities.kind("image")
    image = kind("image", kind.Spec(channels=1, size=2), SpaceShape(2, 2))
    image.check(torch.tensor([[[[-1.0, 1.2], [0.0, -1.3]]]]), "given")
    with pytest.raises(MmfastError, match=r"given runs from 0 to 255; it should be in -1 \.\. 1"):
        image.check(torch.tensor([[[[0.0, 255.0], [3.0, 7.0]]]]), "given")
