"""Training: the trainer and its loop, the loss, the examples of a run, weight averages, CUDA graphs and logs."""

from mmfast.training.loop import fit, train
from mmfast.training.trainer import Trainer

__all__ = ["Trainer", "fit", "train"]
