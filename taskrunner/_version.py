"""The version of taskrunner."""

__version__ = "0.1.0"
