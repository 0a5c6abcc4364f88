"""`--from RUN`: what both have says at first what it said, what is new is fresh, and the run is only read."""

import pytest
import torch
from small_run import contents
from tiny import TINY, flags, tiny

from mmfast import MmfastError
from mmfast.build import build_data, build_model, load_run
from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.from_run import take_weights
from mmfast.training import train

MODALITIES = {
    "image": "{kind: image, channels: 1, size: 8, levels: 17}",
    "label": "{kind: label, classes: 10}",
    "mask": "{kind: mask, classes: 2, size: 8}",
}
UNET = "{kind: unet, channels: 8, multipliers: [1, 2], blocks: 1, head_channels: 8, patch: 2, mean: true}"
MLP = "{kind: mlp, width: 32, blocks: 2, features: 4}"


def pairs(*names, backbone=MLP, **more):
    chosen = ", ".join(f"{name}: {MODALITIES[name]}" for name in names)
    return [*TINY, ("modalities", f"{{{chosen}}}"), ("backbone", backbone), ("train.steps", "3"), *more.items()]


def of(*names, **more):
    from mmfast import config as configs
    from mmfast import presets
    from mmfast.plain_yaml import load_yaml

    raw = load_yaml(presets.text("digits"), "digits")
    raw["modalities"] = {}
    return configs.from_plain(raw, "digits", pairs(*names, **more))


@pytest.fixture(scope="module", params=[MLP, UNET], ids=["mlp", "unet"])
def first(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train(of("image", "mask", backbone=request.param), str(folder), quiet=True)
    return folder, request.param


def test_what_both_have_says_what_it_said(first):
    """The new modality stands in the middle, so channels move; it is seen by weights of zero."""
    folder, backbone = first
    config = of("image", "label", "mask", backbone=backbone)
    model, (_, _, old) = build_model(config).eval(), load_run(folder, "cpu")
    untouched = {name: x.clone() for name, x in model.state_dict().items() if name.startswith("parts.label")}
    kept = take_weights(model, config, folder)
    assert str(kept) == f"weights of {folder}: kept the backbone and image, mask; fresh: label"
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(4, model.channels, 8, 8, generator=g), torch.tensor([1, 300, 700, 1000])
    label, mask = model.starts["label"], model.starts["mask"]
    theirs = torch.cat((z[:, :label], z[:, mask:]), 1)
    data = build_data(config).test.__getitems__(range(4)).data
    given = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
    with torch.no_grad():
        times = model.times(t, given)
        new = model(z, times, model.tell(data["image"], model.encode(data), times))
        times = old.times(t, given[:, [0, 2]])
        want = old(theirs, times, old.tell(data["image"], old.encode(data), times))
    torch.testing.assert_close(new.anchor, want.anchor)
    torch.testing.assert_close(new.heads["mask"], want.heads["mask"])
    assert all(torch.equal(model.state_dict()[name], x) for name, x in untouched.items())
    # And the new one is seen from the first step on: its zeros have a gradient.
    model(z, model.times(t, given), {}).anchor.square().sum().backward()
    place = next(n for n, x in model.named_parameters() if n == "backbone.first.weight")
    assert float(model.get_parameter(place).grad.abs().sum()) > 0


def test_another_order_and_fewer_modalities(first):
    folder, backbone = first
    config = of("mask", "image", backbone=backbone)
    model = build_model(config)
    assert str(take_weights(model, config, folder)).endswith("mask, image; fresh: nothing")
    ema, _ = load_tensors(folder / "ema.safetensors")
    assert all(torch.equal(model.state_dict()[n], x) for n, x in ema.items() if n.startswith(("parts", "backbone")))
    alone = of("image", "label", backbone=backbone)
    assert take_weights(build_model(alone), alone, folder).left_out == ("mask",)


def test_the_command_trains_from_it_and_leaves_it_alone(first, tmp_path, capsys):
    folder, backbone = first
    if backbone != MLP:
        pytest.skip("one backbone is enough for the command")
    lines = "".join(f"  {name}: {spec}\n" for name, spec in MODALITIES.items())
    (tmp_path / "c.yaml").write_text(f"data: {{kind: digits}}\nanchor: image\nmodalities:\n{lines}")
    before = contents(folder)
    command = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "new"), "--from", str(folder), "--quiet"]
    more = flags([*TINY, ("backbone", MLP), ("train.steps", "2")])
    assert main([*command, *more]) == 0
    out = capsys.readouterr().out
    assert f"weights of {folder}: kept the backbone and image, mask; fresh: label" in out
    assert contents(folder) == before
    # Two steps from those weights lie nearer to them than fresh ones do.
    old, new = (load_tensors(f / "model.safetensors")[0]["backbone.last.weight"] for f in (folder, tmp_path / "new"))
    assert float((old - new).abs().max()) < 0.01
    # Repeated, it goes on where it is.
    assert main([*command, *more, "--train.steps", "3"]) == 0
    assert "weights of" not in capsys.readouterr().out
    assert main([*command[:-3], "--from", str(tmp_path / "new"), *more]) == 2
    assert "is the run itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backbone.width": "48"}, "its backbone is .*'width': 32.* it should be the same"),
        ({"loss.target": "v"}, "its loss.target is eps, and here it is v"),
        ({"modalities.mask.classes": "3"}, r"parts.mask.codes is \[2, 1\]; here it is \[3, 2\]"),
    ],
)
def test_what_differs_is_refused(first, change, message):
    folder, backbone = first
    if backbone != MLP:
        pytest.skip("one backbone is enough")
    config = of("image", "mask", **change)
    with pytest.raises(MmfastError, match=message):
        take_weights(build_model(config), config, folder)


def test_where_there_is_no_run(tmp_path):
    config = tiny()
    with pytest.raises(MmfastError, match="holds no run"):
        take_weights(build_model(config), config, tmp_path)
