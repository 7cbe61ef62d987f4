"""Weights and tokenizers in files: gptlit's checkpoints, Hugging Face, nanoGPT, safetensors.

Reads, writes and checks them, also files of unknown origin; gptlit.runs decides when to save.
"""
