"""What this machine's processor does well."""

from __future__ import annotations

import platform

import torch


def slow_in_bf16(device: torch.device) -> bool:
    """Whether this is an x86 processor without AVX-512, where a network may take ten times as long in bf16."""
    x86 = platform.machine() in ("x86_64", "AMD64") and device.type == "cpu"
    return x86 and torch.backends.cpu.get_cpu_capability() != "AVX512"
