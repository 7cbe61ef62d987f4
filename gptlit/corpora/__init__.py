"""From the name of a corpus or a path of the user to documents of clean text.

Finds, downloads, unpacks, decodes, parses and cleans; of the tokenizers it uses only the name of
the number token. Splitting and tokenizing are in `gptlit.data`.
"""
