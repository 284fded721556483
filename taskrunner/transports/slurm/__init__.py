"""Nodes of a Slurm job: `slurm://JOB/NODE`."""

JOB = "[0-9]+(_[0-9]+)?"
"""A pattern: the id of a job, or of one of an array."""
