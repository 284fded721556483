"""What else a node did during a measurement: sampled there, summed up, and judged."""
