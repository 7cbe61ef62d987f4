"""Text from a model: sampling, decoding with a cache, beam search, 8-bit weights.

Plain PyTorch, without files; the command line of `gptlit predict` is in gptlit.predict.
"""
