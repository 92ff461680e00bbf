"""What a client writes and an operator reads: settings, the registry file, checks, logs, state.

It owns where a setting may come from and which one wins, the form of `handler_registry.yaml`, the
outcome of a preflight check, the lines of a log with the ids of the run that they belong to, and
the folder that a handler keeps its state in. It never opens a socket, and never knows a handler.
"""
