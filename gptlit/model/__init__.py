"""The GPT: its options, its network, and what it costs.

The network computes logits; loss, optimizer and sampling are in other folders.
"""
