"""Nodes that nobody can log in to: AWS Systems Manager's Run Command brings questions there."""
