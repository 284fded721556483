"""The proxy in front of prefill and decode servers."""
