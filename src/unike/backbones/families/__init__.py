"""One file for each family of models: how pictures turn into tensors and placeholder tokens, and its template."""
