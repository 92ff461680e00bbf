"""The way of the data: source, process, encode, outbox, send, under the client's egress policy.

It owns `CloudProcessor`, the readers of sources, the encoding of chunks, the durable outbox, the
sender, health reports and the audit log. What client and backend must agree on is `protocol`'s.
It never shows data to anyone but `process` and, by that and the policy, the backend.
"""
