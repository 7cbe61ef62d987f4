"""The CPU's instructions for products of 8-bit integers."""

from collections.abc import Mapping
from typing import Any

import torch


def for_int8() -> str:
    """Return the name of the CPU's instructions that sum products of 8-bit integers; "" for none.

    AMX and VNNI are Intel's and AMD's, the dot product is ARM's.
    """
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_vnni_supported():
        return "VNNI"
    # since torch 2.11; before, an ARM CPU counts as one without
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "dot product" if capabilities.get("dot") else ""
