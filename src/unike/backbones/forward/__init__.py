"""One forward pass: stopping it in front of a layer, going on from there, and what hooks may know of it."""
