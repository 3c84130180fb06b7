"""The command line: a file a verb, with its options and its run.

Their functions import what they run with when they are called: `--help` and `--version` need neither the event loop
nor sockets. `signals` needs no click either: what comes first sets their handlers.
"""
