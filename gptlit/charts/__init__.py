"""Charts of series over an axis, as SVG, PNG or text.

They know nothing about runs: `gptlit.study`, `gptlit.reports` and the end of a run choose what is
drawn.
"""
