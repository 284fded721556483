"""What a result record contains: how it is made of samples, read from other clients, and shown."""
