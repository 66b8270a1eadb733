"""Models that no library publishes in one piece, put together from their published parts."""
