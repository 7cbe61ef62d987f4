"""Write a text for each row of a CSV file with a column "prompt", into a column "text".

python examples/prompts_from_csv.py prompts.csv texts.csv
"""

import csv
import sys

import gptlit

source, target = sys.argv[1:]
model, tokenizer = gptlit.load("best")
with open(source, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
texts = gptlit.generate(
    model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=100, unknown="skip"
)
with open(target, "w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, [*rows[0], "text"])
    writer.writeheader()
    writer.writerows(row | {"text": text} for row, text in zip(rows, texts, strict=True))
print(f"{len(rows)} texts in {target}")
