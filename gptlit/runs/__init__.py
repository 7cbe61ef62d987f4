"""Runs: their folder, files, loggers and callbacks, and how they stop and end.

The code that changes weights is in `gptlit.training`; options and verbs are in `gptlit.cli`.
"""
