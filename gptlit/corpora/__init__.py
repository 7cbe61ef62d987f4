"""From a corpus's name or a path of the user's to documents of clean text.

Finds, downloads, unpacks, decodes, parses and cleans; knows no tokenizer but the name of its
number token. Splitting and tokenizing are in `gptlit.data`.
"""
