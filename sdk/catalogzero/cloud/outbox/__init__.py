"""The outbox: the durable store of uploads that the backend has not completed, in one SQLite file.

`outbox` is what runs, the sender and operators do with it: the rules. It holds a `store`, the file
with its statements, which anyone may look at; `stored` are the values that this gives.
"""
