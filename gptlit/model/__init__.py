"""The GPT: its options, its network, and its parameters, operations and memory.

The network computes logits; loss, optimizer and sampling are in other folders.
"""
