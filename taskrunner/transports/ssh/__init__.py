"""Nodes over SSH (paramiko): `ssh://user@host:port`."""
