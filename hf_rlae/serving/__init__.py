"""Floor 5: an OpenAI-compatible server for an ensemble, on transformers' own serving code (extra `serve`).

The modules are imported by name, because FastAPI, uvicorn and openai are optional.
"""
