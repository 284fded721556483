"""One page that answers what a sweep has found: it opens without a network."""
