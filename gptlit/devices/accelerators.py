"""Finds the accelerators of a machine as Lightning does."""

import os

import torch


def mps_is_available() -> bool:
    """Whether Apple's GPU is there and not hidden by DISABLE_MPS=1, which Lightning obeys too."""
    return os.environ.get("DISABLE_MPS") != "1" and torch.backends.mps.is_available()


def name_of(device: torch.device) -> str:
    """Return the name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fastest() -> str:
    """Return the type of the machine's fastest device: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if mps_is_available() else "cpu"


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64
