"""Runs one plan: its steps, services and files, the processes that they start, and their end."""
