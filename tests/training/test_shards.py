"""Weights in shards (FSDP2) train as whole ones do: real processes on gloo, against one."""

import pytest
import torch
from processes import Job
from rank_runs import assert_one_curve, assert_same_pictures, command, stats, stopping
from tiny import tiny

from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors


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


NETWORKS = [{}, {"backbone": "{kind: unet, channels: 8, multipliers: [1, 2], attention: [4]}"}]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_in_shards_train_as_whole_ones_do(tmp_path, network):
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
def test_shards_are_cut_anew_for_another_number_of_ranks(tmp_path):
    whole = command(tmp_path / "run", 60, train__checkpoint_every=10, train__shard="true")
    for ranks, until in ((2, 15), (1, 30), (4, 45)):
        assert Job(ranks, tmp_path / str(until), stopping, until, whole).wait() == [130] * ranks
    Job(2, tmp_path / "end", main, whole).done()
    assert main(command(tmp_path / "one", 60, train__shard="true")) == 0
    assert_one_curve(tmp_path / "run", tmp_path / "one")


def test_shards_do_not_go_with_graphs_or_the_compiler():
    for name in ("cuda_graphs", "compile"):
        with pytest.raises(MmfastError, match=r"train.shard is true; it goes with train.cuda_graphs=false and"):
            tiny(train__shard="true", **{f"train__{name}": "true"})
