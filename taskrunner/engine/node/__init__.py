"""The end of a connection on a node: answers the requests of a controller."""
