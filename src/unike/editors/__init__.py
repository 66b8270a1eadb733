"""Editing methods; a method is a file with one config and one editor, found by its name."""
