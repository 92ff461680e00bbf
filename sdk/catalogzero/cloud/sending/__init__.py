"""Sending: the one way to the backend, what may take it, and the proof of what did.

The sender empties the outbox, health reports go beside it, and both leave through `push`.
"""
