"""Nodes of a Slurm job: `slurm://JOB/NODE`."""
