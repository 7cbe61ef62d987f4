"""Optimizers, their parameter groups and schedules, and the moving average of weights.

Plain PyTorch, for any model; the loss and Lightning's training loop are in gptlit.training.
"""
