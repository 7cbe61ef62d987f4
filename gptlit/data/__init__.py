"""From documents to batches: splits, token files, the order of windows, loaders.

Reading files of text is in `gptlit.corpora`.
"""
