"""A handler's life: which methods it has, how a run goes, when it sleeps, how it is served.

It owns the `Handler` that authors subclass, its jobs and what is remembered of them, sleep and
resources, the worker process, registration with a scheduler, and the way from a target's name to
a handler that answers. It never speaks HTTP or SQL, and knows nothing of the data that a handler
works on.
"""
