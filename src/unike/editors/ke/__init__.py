"""KnowledgeEditor: a network that reads a fact and rescales its gradient."""
