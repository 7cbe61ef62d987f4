"""Training: the LightningModule, checks, and resuming.

Files, loggers and callbacks of a run are in `gptlit.runs`.
"""
