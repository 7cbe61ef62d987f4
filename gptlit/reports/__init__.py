"""Tables, pictures and reports of runs: `gptlit runs`, `gptlit plot` and `gptlit compare`.

They read what runs, TensorBoard and other tools have written, and import neither torch nor
Lightning, except for the sample texts of a report. Charts of any data belong to `gptlit.charts`.
"""
