"""`gptlit serve`: a page to write on and an API, both for one model.

The engine owns the model; the protocol knows requests and replies, and the app HTTP. How a batch
of texts is written is in gptlit.generation.
"""
