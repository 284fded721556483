"""Measures taskrunner against what its users would pick instead."""
