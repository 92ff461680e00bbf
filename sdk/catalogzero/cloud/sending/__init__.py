"""Sending: the one way to the backend, for uploads and for health reports.

The sender empties the outbox, health reports go beside it, and both leave through `push`. What may
leave, and the proof of what did, is `egress`'s.
"""
