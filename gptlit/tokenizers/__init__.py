"""Text to token ids and back: characters, words, byte-level BPE, published encodings.

A tokenizer's state is plain data. Only published encodings read files; `gptlit.data` makes token
files of whole texts.
"""
