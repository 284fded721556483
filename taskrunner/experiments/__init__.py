"""Experiments: plans of measurements, the order with the fewest restarts, and the sweep that runs them."""
