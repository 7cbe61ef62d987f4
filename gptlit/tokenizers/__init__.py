"""Text to token ids and back: characters, words, byte-level BPE, published encodings.

A tokenizer's state is plain data. No files are read here but those of published encodings;
turning a whole text into a token file is in `gptlit.data`.
"""
