"""A run around the training: its folder, files, loggers, callbacks, how it stops and ends.

What changes the weights is in `gptlit.training`; options and verbs are in `gptlit.cli`.
"""
