"""diffusers' UNet2DModel as a backbone: it computes what diffusers computes, and is told as every backbone is."""

import dataclasses
import inspect

import fresh
import optional
import pytest
import torch
from torch import nn

from mmfast import config as configs
from mmfast.backbones.diffusers import Backbone, Spec
from mmfast.build import build_model
from mmfast.errors import MmfastError

UNet2DModel = optional.diffusers().UNet2DModel
SMALL = {
    "block_out_channels": [8, 12, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip
MORE = [
    {},
    {"layers_per_block": 1, "mid_block_type": None, "downsample_type": "resnet", "upsample_type": "resnet"},
    {"resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 24},
    {"attention_head_dim": None, "norm_eps": 1e-3, "act_fn": "gelu", "mid_block_scale_factor": 2.0},
]


def random(module):
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.1)
    return module.eval()


def theirs(of, channels=3, **options):
    """UNet2DModel by itself, with weights at random, and the backbone with the same."""
    net = random(UNet2DModel(sample_size=8, in_channels=channels, out_channels=2, **{**SMALL, **options}))
    of.net.load_state_dict(
        {k: v for k, v in net.state_dict().items() if not k.startswith(("conv_norm_out", "conv_out"))}
    )
    return net, of.eval()


@pytest.mark.parametrize("options", MORE, ids=str)
def test_its_features_are_what_the_last_layers_of_diffusers_see(options):
    net, ours = theirs(Backbone(Spec(**{**SMALL, **options}), 3, 8), **options)
    seen = []
    net.conv_norm_out.register_forward_hook(lambda module, args, out: seen.extend(args))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 1000])
    expected = net(x, t - 1).sample
    found = ours(x, t).pixels
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)
    norm = ours.out_norm()
    norm[0].load_state_dict(net.conv_norm_out.state_dict())
    torch.testing.assert_close(net.conv_out(norm(found)), expected, rtol=1e-4, atol=1e-5)


def test_what_is_given_enters_on_the_way_up_and_what_is_read_lies_before():
    """`told` and `beside` are added to the time's embedding, which hooks on diffusers' own blocks see."""
    net, ours = theirs(Backbone(Spec(**SMALL), 3, 8))
    x, t, beside, told = torch.randn(2, 3, 8, 8), torch.tensor([5, 900]), torch.randn(2, 32), torch.randn(2, 32)
    time = net.time_embedding(net.time_proj(t - 1))
    ends = []

    def as_told(more):
        return lambda module, args, kwargs: (
            (*args[:-1], args[-1] + more) if "temb" not in kwargs else args,
            {**kwargs, "temb": kwargs["temb"] + more} if "temb" in kwargs else kwargs,
        )

    hooks = [block.register_forward_pre_hook(as_told(beside), with_kwargs=True) for block in net.down_blocks]
    hooks.append(net.mid_block.register_forward_pre_hook(as_told(beside), with_kwargs=True))
    hooks += [b.register_forward_pre_hook(as_told(beside + told), with_kwargs=True) for b in net.up_blocks]
    hooks += [b.register_forward_hook(lambda module, args, out: ends.append(out[1][1])) for b in net.down_blocks]
    hooks.append(net.mid_block.register_forward_hook(lambda module, args, out: ends.append(out)))
    hooks.append(net.conv_norm_out.register_forward_hook(lambda module, args, out: ends.extend(args)))
    net(x, t - 1)
    found = ours(x, t, beside, told)
    torch.testing.assert_close(found.pixels, ends.pop(), rtol=1e-4, atol=1e-5)
    quarters = [h.reshape(2, h.shape[1], 2, h.shape[2] // 2, 2, -1).mean((3, 5)).flatten(1) for h in ends]
    torch.testing.assert_close(found.before, torch.cat(quarters, 1), rtol=1e-4, atol=1e-5)
    assert time.shape[1] == ours.embedding_width


def test_its_options_are_diffusers_own():
    defaults = {name: p.default for name, p in inspect.signature(UNet2DModel.__init__).parameters.items()}
    for field in dataclasses.fields(Spec):
        if field.name != "kind":
            default = getattr(Spec(), field.name)
            assert (tuple(default) if isinstance(default, list) else default) == defaults[field.name], field.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_num_groups": 5}, "backbone: diffusers' UNet2DModel rejects its options: num_channels"),
        ({"down_block_types": ["DownBlock2D"]}, "backbone has 3 block_out_channels, 1 down_block_types and 3 up_block"),
        ({"down_block_types": ["Down", "DownBlock2D", "DownBlock2D"]}, "rejects its options: Down does not exist"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3, "up_block_types": ["SkipUpBlock2D"] * 3,
          "block_out_channels": [32, 32, 32]}, "backbone has a SkipDownBlock2D"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(MmfastError, match=message):
        Backbone(Spec(**{**SMALL, **options}), 3, 8)


@pytest.mark.parametrize(("kinds", "tokens"), [("aaa", 64), ("pap", 16), ("ppp", 4), ("ppa", 4)])
def test_the_tokens_counted_are_of_the_finest_attention(kinds, tokens):
    down = ["AttnDownBlock2D" if kind == "a" else "DownBlock2D" for kind in kinds]
    assert Backbone(Spec(**{**SMALL, "down_block_types": down}), 3, 8).tokens == tokens


def test_a_grid_that_does_not_halve_is_named():
    with pytest.raises(MmfastError, match="block_out_channels has 3 levels; 10 pixels do not halve 2 times"):
        Backbone(Spec(**SMALL), 3, 10)


def test_a_config_takes_it():
    options = [(f"backbone.{k}", str(v).replace("'", "")) for k, v in {"kind": "diffusers", **SMALL}.items()]
    model = build_model(configs.load("digits", options))
    assert [x.shape[0] for x in (model.norm[0].weight, model.out.weight)] == [8, 1]
    assert model.norm[0].num_groups == 4


@pytest.mark.slow
def test_without_diffusers_it_says_what_to_install():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from mmfast.backbones.diffusers import Backbone, Spec\n"
        "Backbone(Spec(), 3, 8)"
    )
    found = fresh.run(code).stderr.splitlines()[-1]
    assert found.endswith(
        "backbone.kind=diffusers needs diffusers, which is not installed: pip install 'mmfast[diffusers]'"
    )
