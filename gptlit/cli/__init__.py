"""The verbs other than predict and study, and how command lines become options.

A verb's file parses and prints; what it computes is in the folder of its concept.
"""
