"""`--from RUN`: what both have says at first what it said, what is new is fresh, and the run is only read."""

import pytest
import torch
from small_run import contents
from tiny import TINY, flags, tiny

from mmfast import MmfastError
from mmfast.build import build_data, build_model, load_run
from mmfast.cli import main
from mmfast.config import to_yaml
from mmfast.files import load_tensors, save_tensors
from mmfast.from_run import _inputs, take_weights
from mmfast.training import train

MODALITIES = {
    "image": "{kind: image, channels: 1, size: 8, levels: 17}",
    "label": "{kind: label, classes: 10, weight: {kind: carried}}",
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


LEVELS = {
    "unet": UNET,
    "dit": "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}",
}


@pytest.mark.parametrize("backbone", LEVELS)
def test_heads_that_see_what_the_backbone_sees_are_widened_too(backbone, tmp_path, monkeypatch):
    """A feature pyramid ends with the backbone's input, so its weights move with the channels."""
    monkeypatch.setitem(MODALITIES, "mask", "{kind: mask, classes: 2, size: 8, reads: encoder}")
    how = {"backbone": LEVELS[backbone]}
    train(of("image", "mask", **how), str(tmp_path / "run"), quiet=True)
    config = of("image", "label", "mask", **how)
    model, (_, _, old) = build_model(config).eval(), load_run(tmp_path / "run", "cpu")
    assert str(take_weights(model, config, tmp_path / "run")).endswith("image, mask; fresh: label")
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(4, model.channels, 8, 8, generator=g), torch.tensor([1, 300, 700, 1000])
    label, mask = model.starts["label"], model.starts["mask"]
    with torch.no_grad():
        new, want = model(z, t, {}), old(torch.cat((z[:, :label], z[:, mask:]), 1), t, {})
    torch.testing.assert_close(new.heads["mask"], want.heads["mask"])
    assert float(want.heads["mask"].abs().max()) > 0


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("mask", "{kind: mask, classes: 2, size: 8, reads: encoder}"),
        ("label", "{kind: label, classes: 10, weight: {kind: carried}, reads: decoder}"),
    ],
)
def test_a_head_that_reads_other_features_is_fresh(kind, other, tmp_path, monkeypatch):
    how = {"backbone": LEVELS["dit"]}
    train(of("image", "label", "mask", **how), str(tmp_path / "run"), quiet=True)
    monkeypatch.setitem(MODALITIES, kind, other)
    config = of("image", "label", "mask", **how)
    model, (_, _, old) = build_model(config), load_run(tmp_path / "run", "cpu")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    kept = take_weights(model, config, tmp_path / "run")
    assert str(kept).endswith(f"fresh: the head of {kind}, which reads other features")
    theirs = old.state_dict()
    for name, x in model.state_dict().items():
        fresh = name.startswith((f"parts.{kind}.out.", f"parts.{kind}.norm."))
        assert torch.equal(x, before[name] if fresh else theirs[name]), name


def test_another_order_and_fewer_modalities(first):
    folder, backbone = first
    config = of("mask", "image", backbone=backbone)
    model = build_model(config)
    assert str(take_weights(model, config, folder)).endswith("mask, image; fresh: nothing")
    ema, _ = load_tensors(folder / "ema.safetensors")
    assert all(torch.equal(model.state_dict()[n], x) for n, x in ema.items() if n.startswith(("parts", "backbone")))
    alone = of("image", "label", backbone=backbone)
    assert take_weights(build_model(alone), alone, folder).left_out == ("mask",)


def test_what_is_seen_of_another_weight_enters_by_zeros(first):
    """W is another: the channels of z_t mean other things, and the heads what they meant."""
    folder, backbone = first
    config = of("image", "mask", backbone=backbone, **{"modalities.mask.weight.scale": "0.5"})
    model = build_model(config)
    take_weights(model, config, folder)
    old = build_model(load_run(folder, "cpu")[1])
    seen = [k for k, place in enumerate(model.seen_layout()) if place[0] == "mask"]
    name = "backbone.first.weight" if backbone == MLP else next(iter(_inputs(config, model)))
    columns = model.get_parameter(name).unflatten(1, (len(model.seen_layout()), -1))
    assert seen and not columns[:, seen].any() and columns[:, 0].any() and model.seen_layout() == old.seen_layout()
    ema, _ = load_tensors(folder / "ema.safetensors")
    assert all(torch.equal(model.state_dict()[n], x) for n, x in ema.items() if n.startswith("parts.mask"))


@pytest.mark.slow
def test_the_command_trains_from_it_and_leaves_it_alone(first, tmp_path, capsys):
    folder, backbone = first
    if backbone != MLP:
        pytest.skip("one backbone is enough for the command")
    lines = "".join(f"  {name}: {spec}\n" for name, spec in MODALITIES.items())
    (tmp_path / "c.yaml").write_text(f"data: {{kind: digits}}\nanchor: image\nmodalities:\n{lines}")
    before = contents(folder)
    command = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "new"), "--from", str(folder), "--quiet"]
    more = flags([*TINY, ("backbone", MLP), ("loss.target", "eps"), ("train.steps", "2")])
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
    # Even where what it began from is gone, and though another run could not be begun from that.
    gone = [str(tmp_path / "gone") if word == str(folder) else word for word in command]
    assert main([*gone, *more, "--train.steps", "4"]) == 0
    elsewhere = [str(tmp_path / "other") if word == str(tmp_path / "new") else word for word in gone]
    assert main([*elsewhere, *more]) == 2 and not (tmp_path / "other").exists()
    assert "gone holds no run" in capsys.readouterr().err
    assert main([*command[:-3], "--from", str(tmp_path / "new"), *more]) == 2
    assert "is the run itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backbone.width": "48"}, "its backbone is .*'width': 32.* it should be the same"),
        ({"modalities.mask.diffused": "true"}, "its modalities.mask.diffused is False, and here it is True"),
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


def untrained(folder, config):
    """A run's folder with weights at random."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    save_tensors(folder / "ema.safetensors", build_model(config).state_dict(), {})
    return folder


NAMED = {
    "modalities.label.names": {"modalities.label": "{kind: label, classes: 2, names: [a, b]}"},
    "modalities.mask.colours": {"modalities.mask.colours": "['#ff0000', '#0000ff']", "modalities.mask.classes": "2"},
    "modalities.caption.text_encoder": {"modalities.caption": "{kind: caption, text_encoder: ngrams}"},
    "modalities.map.network": {"modalities.map": "{kind: feature_map, dim: 2, cells: 4}"},
}
BRIDGES = {"modalities.mask.weight.kind": "bridge", "space": "shared"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schedule.T": "500"}, "its schedule is .*'T': 1000.*, and here it is .*'T': 500.* it should be the same"),
        ({"schedule.kind": "linear"}, "its schedule is .*cosine"),
        ({"told": "false"}, "its told is True, and here it is False"),
        (BRIDGES, "its space is own, and here it is shared"),
        ({"modalities.mask": "{kind: label, classes: 3}"}, r"its modalities\.mask\.kind is mask, and here it is label"),
        (
            {"modalities.label.names": "[b, a]"},
            r"its modalities\.label\.names is \['a', 'b'\], and here it is \['b', 'a'\]",
        ),
        (
            {"modalities.mask.colours": "['#0000ff', '#ff0000']"},
            r"its modalities\.mask\.colours is \['#ff0000', '#0000ff'\], and here it is \['#0000ff', '#ff0000'\]",
        ),
        (
            {"modalities.caption.text_encoder": "minilm"},
            r"its modalities\.caption\.text_encoder is ngrams, and here it is minilm",
        ),
        (
            {"modalities.map.network": "efficientnet-lite0"},
            r"its modalities\.map\.network is , and here it is efficientnet-lite0",
        ),
    ],
)
def test_weights_that_would_mean_another_thing_are_refused(tmp_path, change, message):
    (key,) = (key for key in change if key != "space")
    named = NAMED.get(key, {})
    folder = untrained(tmp_path / "run", of("image", "mask", **named))
    config = of("image", "mask", **{**named, **change})
    model = build_model(config)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(MmfastError, match=f"--from {folder}: {message}"):
        take_weights(model, config, folder)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_in_shared_channels_all_have_to_be_there(tmp_path):
    """Since each stands in the channels of all; the same ones are taken."""
    config = of("image", "mask", **BRIDGES)
    folder = untrained(tmp_path / "run", config)
    model = build_model(config)
    assert take_weights(model, config, folder).fresh == ()
    ema, _ = load_tensors(folder / "ema.safetensors")
    assert all(torch.equal(x, ema[name]) for name, x in model.state_dict().items())
    more = of("image", "mask", "label", **BRIDGES, **{"modalities.label.weight.kind": "bridge"})
    with pytest.raises(MmfastError, match=r"in shared channels the modalities should be the same, or use space=own"):
        take_weights(build_model(more), more, folder)


def test_what_no_weight_hangs_on_may_differ_and_an_encoder_of_ones_own_is_fresh(tmp_path):
    """Dropout has no weights. A learned encoder, where the run had a fixed one, has some that the run has not."""
    text = "{{kind: embedding, dim: 5, encoder: {}}}"
    config = of("image", **{"modalities.text": text.format("learned"), "backbone.dropout": "0.3"})
    folder = untrained(tmp_path / "run", of("image", **{"modalities.text": text.format("fixed")}))
    model, (ema, _) = build_model(config), load_tensors(folder / "ema.safetensors")
    fresh = {name: x.clone() for name, x in model.state_dict().items() if name not in ema}
    take_weights(model, config, folder)
    assert "parts.text.proj.weight" in fresh
    for name, x in model.state_dict().items():
        if name not in ("backbone.first.weight", "backbone.past.weight"):  # which see more channels of it
            assert torch.equal(x, fresh[name] if name in fresh else ema[name]), name
    # What those channels meant was another encoder's: the image's are kept, and the text's are zero.
    image, places = len(ema["backbone.first.weight"]), [of for of, _, _ in model.seen_layout()]
    columns = model.state_dict()["backbone.first.weight"].unflatten(1, (len(places), -1))
    kept = ema["backbone.first.weight"].unflatten(1, (-1, columns.shape[2]))
    assert len(columns) == image and torch.equal(columns[:, 0], kept[:, 0]) and places[0] == "image"
    assert all(bool((columns[:, i] == 0).all()) == (of == "text") for i, of in enumerate(places))


def test_where_there_is_no_run(tmp_path):
    config = tiny()
    with pytest.raises(MmfastError, match="holds no run"):
        take_weights(build_model(config), config, tmp_path)
