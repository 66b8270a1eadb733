"""Methods with a network that is trained for each backbone: the loop, checkpoints, and what is saved."""
