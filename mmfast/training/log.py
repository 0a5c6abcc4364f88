"""TensorBoard, where it is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfast.config import Config


class Board:
    """A SummaryWriter that goes on after a step, forgetting what was logged past it; nothing without TensorBoard."""

    def __init__(self, folder: Path, config: Config, done: int, silent: bool = False) -> None:
        self.writer: Any = None
        if config.train.tensorboard and done < config.train.steps and not silent:
            # TensorBoard looks for TensorFlow, whose start-up messages are no concern of this program.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(str(folder), purge_step=done + 1)

    def add(self, line: dict[str, Any]) -> None:
        """One line of stats.jsonl."""
        if self.writer is not None:
            for name, value in line.items():
                if name not in ("step", "images"):
                    self.writer.add_scalar(name.replace(".", "/"), value, line["step"])

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        if self.writer is not None:
            self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
