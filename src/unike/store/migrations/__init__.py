"""How a store's tables came about, step by step; Alembic takes a store from wherever it is to the newest."""
