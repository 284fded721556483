"""Disaggregated inference: servers, the proxy in front of them, and the client that measures them.

All of this is shipped to nodes with the engine and runs there with the Python of vLLM's environment, which
has uvloop, httptools, numpy and prometheus_client. It imports nothing from the rest of taskrunner.
"""
