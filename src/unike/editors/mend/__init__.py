"""MEND: a network that turns the gradient of one backward pass into a low-rank update."""
