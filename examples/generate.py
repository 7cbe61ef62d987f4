"""Write with the best checkpoint of the newest run: python examples/generate.py"""

import gptlit

model, tokenizer = gptlit.load("best")
print(gptlit.generate(model, tokenizer, "ROMEO:", max_new_tokens=200))
