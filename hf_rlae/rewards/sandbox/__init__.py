"""Runs code that a model wrote, apart from this machine. `docs/sandbox.md` says what is promised and what is not.

`pool` starts *zygotes*, small Python processes of their own; a zygote forks one locked-down *worker* per session, and
the caller and the worker exchange lines of JSON. The modules that run inside a zygote import only the standard library
and one another.
"""
