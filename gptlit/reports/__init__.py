"""Tables and pictures of runs: `gptlit runs` and `gptlit plot`.

They read what runs, TensorBoard and other tools have written, and import neither torch nor
Lightning. Charts of any data belong to `gptlit.charts`.
"""
