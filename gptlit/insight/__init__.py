"""A model from the inside: attention maps, scores of a passage, logit lens, nearest neighbours.

Plain PyTorch on a model and token ids; pictures and pages of the results belong to the commands.
"""
