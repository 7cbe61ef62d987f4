"""The peaks of a device: operations per second as published, and memory as used so far."""

import sys

import torch

# TFLOP/s in dense bfloat16 with float32 sums, from data sheets; the first matching name counts
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "GH200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def tflops(name: str) -> float | None:
    """Return the published peak of a device by its name; None if it is not in PEAKS."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: of a CUDA GPU's tensors, or of a process on a CPU.

    None for other devices, and on systems that don't count them.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
