"""Nodes with which a conversation is kept: the engine's server there (engine/node/stdio_server.py) is asked
over one channel, whichever way it is started.
"""
