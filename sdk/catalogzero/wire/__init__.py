"""Calls between processes: what a message says, how it travels, and who asks.

It owns the messages of the wire protocol (docs/reference/wire-protocol.md), the transports that
carry them behind one Protocol, and the client that sends calls and matches replies. It never runs
a method, and never decides what a call means: that is the runtime's.
"""
