"""The benchmark client: load, streams, what they say, and how sure that is."""
