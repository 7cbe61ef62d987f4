"""`gptlit predict`: prompts, output formats, sweeps, explaining, the interactive loop.

How tokens are chosen is in `gptlit.generation`.
"""
