"""A callback of one's own: prints the tokens per second at each validation.

Run it with gptlit fit, from this folder or with a config next to this file:

    gptlit fit --config tiny.yaml --trainer.callbacks+=own_callback.TokensPerSecond
"""

import time
from typing import Any

import lightning as L


class TokensPerSecond(L.Callback):
    """Prints the speed of training since the last validation.

    Args:
        digits: Number of digits after the decimal point.
    """

    def __init__(self, digits: int = 0) -> None:
        self.digits = digits
        self.n_tokens = 0
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, model: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        inputs, _ = batch  # (B, T) token ids each
        self.n_tokens += inputs.numel()

    def on_validation_end(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        speed = self.n_tokens / (time.perf_counter() - self.began)
        print(f"step {trainer.global_step}: {speed:,.{self.digits}f} tokens/s")
        self.n_tokens, self.began = 0, time.perf_counter()
