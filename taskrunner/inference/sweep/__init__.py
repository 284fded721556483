"""What a sweep of measurements needs on its nodes: whether a result is there, and a place to meet."""
