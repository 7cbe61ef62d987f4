"""The computation of one training step: the objective, compiling, the metrics of a split."""
