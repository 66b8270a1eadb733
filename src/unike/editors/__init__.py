"""Editing methods; a method is a file, or a folder with a file ``editor.py``, with one config and one editor.

It is found by its name. A method knows the parts in `common` and, with a trained network, `trained`; no other method.
"""

SHARED = frozenset({"base", "checks", "common", "trained"})
"""What is here beside the methods."""
