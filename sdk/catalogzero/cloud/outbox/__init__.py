"""The outbox: the durable store of uploads that the backend has not completed, in one SQLite file.

`store` is what runs, the sender and operators do with it. It stands on `identity` (whose outbox it
is, and whether it agrees with the backend), `contents` (what it holds, to look at) and `file`.
"""
