"""Training: the LightningModule, losses, checks, compiling and resuming.

Files, loggers and callbacks of a run are in `gptlit.runs`.
"""
