"""The upload protocol as one pure room: what client, backend and test suites must agree on.

It owns the identities of sources and uploads, the bodies of requests, the content codings, the
problem types, what an answer means to a client and what a `complete` means to a backend
(docs/reference/upload-protocol.md). It never touches a file, a socket, a clock, a database or an
HTTP library: bytes and facts go in, bytes and decisions come out.
"""
