"""Parts that editors are built from; they know hooks and shapes, but no editor and no concrete model."""
