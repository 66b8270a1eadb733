"""The benchmark: choosing cases, editing them, asking, scoring, and results that survive a kill at any moment."""
