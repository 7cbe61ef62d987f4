"""Tests, which run on the CPU of any machine, except tests/gpu."""

import os

# the device of tests/gpu: cuda, mps or cpu; all other tests need it to be unset or cpu
DEVICE = os.environ.get("GPTLIT_TEST_DEVICE", "")
if DEVICE not in ("cuda", "mps"):
    # set before torch counts the GPUs, and inherited by all child processes
    os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="", DISABLE_MPS="1")
