"""The exact metrics of a split: `gptlit validate` and `gptlit test`."""

import sys

from gptlit.messages import note, print_lines
from gptlit.runs.build import Run
from gptlit.runs.run_end import interruptible
from gptlit.training import resuming

SPLITS = {"validate": "val", "test": "test"}


def evaluate(run: Run) -> None:
    """Print the metrics of the whole validation or test split."""
    start = run.plan.start
    assert start is not None
    split = SPLITS[run.plan.purpose]
    function = getattr(run.trainer, run.plan.purpose)
    with interruptible(run.trainer):
        settings = {"datamodule": run.data, "ckpt_path": run.options.ckpt_path}
        (metrics,) = function(run.model, verbose=False, **settings)
    if not run.trainer.is_global_zero:
        return
    tokens, trained, text = run.data.tokens, start.described["text"], run.data.describe_text()
    if trained["sha256"] != text["sha256"] and not run.plan.text_given:
        note(f"warning: {text['name']} has changed since it was trained on")
    if resuming.was_trained_on(split, trained, text):
        note(f"warning: the {split} split overlaps the text that the model was trained on")
    rows = {
        "checkpoint": start.path,
        "text": f"{tokens.provenance['name']}, {split} split",
        "tokens": f"{tokens.size(split):,}",
        "bytes": f"{tokens.n_bytes(split):,}",
        **{name: f"{value:.6f}" for name, value in metrics.items()},
    }
    if reason := tokens.incomparable(split):
        rows["not comparable"] = f"bits_per_byte: {reason}"
    print_lines("\n".join(f"{name:<20}{value}" for name, value in rows.items()), sys.stdout)
