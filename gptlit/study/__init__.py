"""`gptlit study`: many runs from one file, their table, charts and power law.

A single run is in `gptlit.cli` and `gptlit.runs`.
"""
