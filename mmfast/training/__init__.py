"""Training: the trainer and its loop, the loss, what an example of a run is, averages, CUDA graphs and the logs."""

from mmfast.training.loop import fit, train
from mmfast.training.trainer import Trainer

__all__ = ["Trainer", "fit", "train"]
