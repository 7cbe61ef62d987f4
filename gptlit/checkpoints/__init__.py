"""Weights and tokenizers in files: gptlit's checkpoints, Hugging Face, nanoGPT, safetensors.

Reads and writes them, and checks files of unknown origin. When a run saves is in `gptlit.runs`.
"""
