"""SERAC: a scope classifier and a counterfactual model."""
