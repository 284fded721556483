"""Settings of UCX for a fabric, tried on transfers as they are between two servers."""
