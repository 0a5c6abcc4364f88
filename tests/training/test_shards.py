"""Weights in shards (FSDP2) train as whole ones do: real processes on gloo, against one."""

import pytest
import torch
import torch.distributed as dist
from processes import Job
from rank_runs import assert_one_curve, assert_same_pictures, command, stats, stopping
from tiny import tiny

from mmfast.build import build_model
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import Ranks
from mmfast.training import shards


def sharded(argv):
    """The command, which has to hold a half of each of the network's weights here, and all of the rest."""
    from mmfast.training import trainer

    export = trainer.Trainer.export

    def looks(self):
        for model in self.modules.values():
            for name, p in model.named_parameters():
                assert hasattr(p, "to_local") == name.startswith("backbone."), name
                assert not hasattr(p, "to_local") or len(p.to_local()) <= -(-len(p) // 2), name
        export(self)

    trainer.Trainer.export = looks
    return main(argv)


UNET = {"backbone": "{kind: unet, channels: 8, multipliers: [1, 2], attention: [4]}"}
NETWORKS = [{}, UNET, {**UNET, "train__clean_pass": 0.5}]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_in_shards_train_as_whole_ones_do(fsdp2, tmp_path, network):
    """The norm is over all shards: the gradient is clipped in every step."""
    options = {**network, "train__grad_clip": 0.1, "train__shard": "true", "train__weight_decay": 0.1}
    assert main(command(tmp_path / "one", 12, **options)) == 0
    Job(2, tmp_path, sharded, command(tmp_path / "run", 12, **options)).done()
    assert_one_curve(tmp_path / "run", tmp_path / "one")
    assert_same_pictures(tmp_path / "run", tmp_path / "one")
    assert min(line["grad_norm"] for line in stats(tmp_path / "run")) > 0.2
    (a, about), (b, wanted) = (load_tensors(tmp_path / name / "trainer.safetensors") for name in ("run", "one"))
    assert about["step"] == wanted["step"] == 12 and a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_shards_are_cut_anew_for_another_number_of_ranks(fsdp2, tmp_path):
    whole = command(tmp_path / "run", 60, train__checkpoint_every=10, train__shard="true")
    for ranks, until in ((2, 15), (1, 30), (4, 45)):
        assert Job(ranks, tmp_path / str(until), stopping, until, whole).wait() == [130] * ranks
    Job(2, tmp_path / "end", main, whole).done()
    assert main(command(tmp_path / "one", 60, train__shard="true")) == 0
    assert_one_curve(tmp_path / "run", tmp_path / "one")


def test_shards_do_not_go_with_graphs_or_the_compiler():
    for name in ("cuda_graphs", "compile"):
        with pytest.raises(MmfastError, match=r"train.shard is true; it needs train.cuda_graphs=false and"):
            tiny(train__shard="true", **{f"train__{name}": "true"})


@pytest.fixture
def group(fsdp2):
    """torch's group of this process alone, on gloo: its shards are the whole."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks()
    dist.destroy_process_group()


class Two(Ranks):
    """The first of two ranks, of which the other has shards with the same sum of squares."""

    def __init__(self):
        super().__init__(0, 2)

    def mean(self, x):
        return x


def test_the_pieces_in_one_process(group):
    """The backbone's weights alone are shards, in groups of their own; whole again, they are as they were."""
    model, same = build_model(tiny()), build_model(tiny())
    shards.shard(model, group, torch.device("cpu"))
    cut = {name for name, p in model.named_parameters() if shards.is_shard(p)}
    assert cut == {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    blocks = [*model.backbone.blocks]
    assert all(type(x).__name__.startswith("FSDP") for x in (model.backbone, *blocks))
    wanted = same.state_dict()
    found = shards.whole(model.state_dict(), first=True)
    assert found.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in found.items())
    assert not any(shards.is_shard(x) for x in found.values()) and shards.whole(model.state_dict(), first=False) == {}
    for name, p in model.named_parameters():
        local, again = shards.local(p), shards.like(wanted[name] + 1, p)
        assert torch.equal(local, wanted[name]) and not shards.is_shard(local)
        assert shards.is_shard(again) == (name in cut)
        assert torch.equal(shards.local(again), wanted[name] + 1)
    parts = [{id(p) for p in part["params"]} for part in shards.groups(model.parameters())]
    split = [{id(p) for n, p in model.named_parameters() if (n in cut) == kind} for kind in (False, True)]
    assert parts == split and len(shards.groups(same.parameters())) == 1


@pytest.mark.parametrize(("ranks", "others"), [(Ranks(), 1), (Two(), 2)], ids=["one", "two"])
@pytest.mark.parametrize("most", [0.5, 1e4])
def test_the_norm_is_over_all_shards_and_weights(group, ranks, others, most):
    """In float64, a parameter without a gradient left out; what is below `most` stays as it is."""
    model, g = build_model(tiny()), torch.Generator().manual_seed(0)
    shards.shard(model, group, torch.device("cpu"))
    squares, grads = 0.0, {}
    for k, (name, p) in enumerate(model.named_parameters()):
        if k == 1:
            continue
        grads[name] = torch.randn(p.shape, generator=g)
        p.grad = shards.like(grads[name].clone(), p)
        squares += float(grads[name].double().square().sum()) * (others if shards.is_shard(p) else 1)
    norm = shards.clip(model.parameters(), most, ranks)
    assert float(norm) == pytest.approx(squares**0.5, rel=1e-5) and 1 < float(norm) < 1e4
    for name, p in model.named_parameters():
        if name in grads:
            expected = grads[name] * min(1, most / squares**0.5)
            torch.testing.assert_close(shards.local(p.grad), expected, rtol=1e-5, atol=1e-7)
        else:
            assert p.grad is None
