"""The paper's method, as it is read: pairs, memory, spaces, collaboration, and a gate that is beyond it."""
