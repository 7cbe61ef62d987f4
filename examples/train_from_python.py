"""Train a small GPT on a text file with a Lightning Trainer of your own, then write.

python examples/train_from_python.py my.txt 300
"""

import sys

import lightning

import gptlit
from gptlit.data.datamodule import TextDataModule
from gptlit.training.module import LitGPT

path, max_steps = sys.argv[1], int(sys.argv[2])
data = TextDataModule(path=path, batch_size=16, block_size=32)
model = LitGPT(n_layer=2, n_head=2, n_embd=64, block_size=32, lr=3e-3, warmup_steps=20)
trainer = lightning.Trainer(max_steps=max_steps, logger=False, enable_checkpointing=False)
trainer.fit(model, data)
(metrics,) = trainer.validate(model, data, verbose=False)  # of the whole validation split
print(f"val/loss {metrics['val/loss']:.3f}")
print(gptlit.generate(model.net, data.tokenizer, max_new_tokens=200))
trainer.save_checkpoint("mine.ckpt", weights_only=False)  # gptlit.load("mine.ckpt") reads it
