"""A schedule as task files: one engine run on each node does the whole sweep, with nobody watching.

Every step has a guard by content: what is measured and valid is skipped, and a start of which nothing is left
is none. So the same file is started again after whatever has stopped it. On two nodes, node 1 measures and
says when a start begins and ends, node 2 says what becomes of its server; they meet in node 1's rendezvous.
"""
