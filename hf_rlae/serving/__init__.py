"""Floor 5: an OpenAI-compatible server for an ensemble, on transformers' own serving code (extra `serve`).

The modules are imported by name, because FastAPI, uvicorn and openai are optional.
"""

PACKAGES = ("fastapi", "uvicorn", "openai")
"""What the extra installs."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""The hosts that only this machine reaches."""
