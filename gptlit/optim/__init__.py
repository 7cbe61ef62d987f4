"""Optimizers, their parameter groups and schedules, and the moving average of weights.

Plain PyTorch: no Lightning, no knowledge of what is trained.
"""
