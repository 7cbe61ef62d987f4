"""Trained models in other programs' formats: transformers, llama.cpp, ONNX, plain tensors.

Which class or architecture of another program can hold a config, its weights and options by their
names, and the files. Importing from other programs belongs to `checkpoints`.
"""
