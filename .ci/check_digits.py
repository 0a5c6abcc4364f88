"""The README's main job, checked: python .ci/check_digits.py RUN."""

import json
import sys
from pathlib import Path

FLOORS = {
    "label.joint_agreement": 0.93,
    "label.conditional_accuracy": 0.95,
    "label.recovered_accuracy": 0.93,
    "mask.joint_iou": 0.85,
    "mask.conditional_iou": 0.90,
}
FILES = ("model.safetensors", "ema.safetensors", "config.yaml", "stats.jsonl", "metrics.json")

run = Path(sys.argv[1])
missing = [name for name in FILES if not (run / name).exists() or not (run / name).stat().st_size]
metrics = json.loads((run / "metrics.json").read_text())
low = [f"{name} {metrics[name]:.3f} < {floor}" for name, floor in FLOORS.items() if metrics[name] < floor]
pictures = len(list((run / "samples").glob("*.png")))
if missing or low or not pictures:
    sys.exit(f"{run}: missing {missing}, too low {low}, {pictures} pictures")
print(f"{run}: {pictures} pictures; " + ", ".join(f"{name} {metrics[name]:.3f}" for name in FLOORS))
