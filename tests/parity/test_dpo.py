"""DPO's loss and rewards against those of TRL's trainer, on the same logits."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.data.loaders import IGNORED
from gptlit.steps.preferences import compare, log_probabilities

trl = pytest.importorskip("trl", reason="runs with `make parity`")


class Fixed(torch.nn.Module):
    """A model that predicts given logits, with the outputs that TRL reads."""

    is_gradient_checkpointing = False

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits  # (N, T, V)

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> Any:
        targets, logits = labels[:, 1:], self.logits[:, :-1]
        logs = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        nothing = torch.zeros_like(logs)
        return SimpleNamespace(
            log_probs=logs * (targets != IGNORED), entropy=nothing, mean_logits=nothing,
            is_top1=nothing.bool(),
        )  # fmt: skip


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_trls_loss(beta: float) -> None:
    torch.manual_seed(0)
    policy, reference = (torch.randn(6, 7, 11) for _ in range(2))
    ids = torch.randint(11, (6, 7))
    completion = torch.zeros(6, 7)
    completion[:, 3:] = 1
    completion[4, 5:] = 0
    same = lambda each: each  # noqa: E731
    trainer = SimpleNamespace(
        model=Fixed(policy), ref_model=Fixed(reference), beta=beta, aux_loss_enabled=False,
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None), loss_types=["sigmoid"],
        loss_weights=[1.0], use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": torch.ones(6, 7), "completion_mask": completion}
    theirs = trl.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)

    # TRL has all chosen answers, then all rejected ones
    in_turn = torch.arange(6).view(2, 3).T.flatten()
    targets = ids.masked_fill(completion == 0, IGNORED)[in_turn, 1:]
    logs = [log_probabilities(each[in_turn, :-1], targets) for each in (policy, reference)]
    ours = compare(*logs, beta, torch.ones(3))
    torch.testing.assert_close(ours.loss.mean(), theirs)
    logged = trainer._metrics["train"]
    assert logged["rewards/margins"] == pytest.approx([ours.margin.mean().item()], abs=1e-5)
    assert logged["rewards/accuracies"] == pytest.approx([ours.is_right.mean().item()])
