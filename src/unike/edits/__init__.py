"""Edits: tensors with what they mean, stacks of them, and a model under a stack.

What makes them is above (`unike.editors`); here they are values that act on a backbone, are saved, and taken off again.
"""
