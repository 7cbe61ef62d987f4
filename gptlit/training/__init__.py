"""What changes the weights: the LightningModule, losses, metrics, compiling, resuming.

Files, loggers and callbacks of a run are in `gptlit.runs`.
"""
