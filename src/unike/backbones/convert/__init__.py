"""Models that no library publishes in one piece, put together from their published parts.

A file a model: it reads the parts without running anything in them, accounts for every tensor, and writes a folder that
`load_backbone` and ``transformers`` read. What only that model needs is here, not in the family that reads the folder.
"""
