"""What the results of a sweep say: comparisons with their uncertainty, modes, costs of a transfer, alarms.

Pure functions over records. The unit of replication is the start: requests of one start are not independent.
"""
