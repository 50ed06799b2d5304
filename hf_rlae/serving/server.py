"""The server: transformers' application with an ensemble, behind limits, on the loopback."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from hf_rlae.extras import missing_packages
from hf_rlae.serving import LOOPBACK, PACKAGES

if (message := missing_packages("hf_rlae.serving.server", PACKAGES, "serve")) is not None:
    raise ImportError(message)

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from transformers.cli.serving.server import build_server

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, one_line
from hf_rlae.serving.handlers import ChatHandler, TextHandler, error_body
from hf_rlae.serving.limits import App, LimitedApp, Limits, limited_protocol
from hf_rlae.serving.model_manager import EnsembleManager

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/load_model")
"""What is left of transformers' endpoints: the others load, unload or need other models."""


def build_app(
    ensemble: EnsembleForCausalLM,
    name: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    max_new_tokens: int = 1024,
    limits: Limits | None = None,
    is_local: bool = True,
) -> App:
    """The ASGI application that serves an ensemble.

    Args:
        ensemble (`EnsembleForCausalLM`): what is served.
        name (`str`): the name of the model for clients.
        defaults (`Mapping[str, Any]`, *optional*): keyword arguments of `generate` for requests that do not say how
            to choose tokens; greedy decoding if not given.
        max_new_tokens (`int`, defaults to 1024): the most new tokens per request.
        limits (`Limits`, *optional*): of requests and connections.
        is_local (`bool`, defaults to `True`): whether only requests to a name of the loopback are answered, so that no
            page in a browser can reach the server under a name of its own.
    """
    manager = EnsembleManager(ensemble, name)
    settings = ({"do_sample": False, **(defaults or {})}, max_new_tokens)
    none: Any = None
    app = build_server(
        manager, ChatHandler(manager, *settings), TextHandler(manager, *settings), none, none, none, manager.state
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in PATHS]
    if is_local:
        # starlette reads "[" of "[::1]:8000"
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]", "["])
    _answer_errors_in_words(app)
    return LimitedApp(app, limits or Limits())  # type: ignore[arg-type]


def _answer_errors_in_words(app: FastAPI) -> None:
    """Errors have the form of OpenAI's interface, and never a traceback."""

    async def refused(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:3])
        return JSONResponse(error_body(400, f"the body is not a JSON object: {one_line(said)}"), 400)

    async def failed(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(error_body(500, f"the server failed to answer ({type(error).__name__})"), 500)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


def build_http_server(app: App, limits: Limits | None = None) -> uvicorn.Server:
    """The HTTP server of an application; `run(sockets=[listen(...)])` serves until SIGINT or SIGTERM.

    Args:
        app: from `build_app`.
        limits (`Limits`, *optional*): of connections.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=limited_protocol(limits or Limits()),
        ws="none",
        log_level="critical",  # clients could fill the log; what fails is logged by the application
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Args:
        host (`str`), port (`int`): the address; port 0 is any free one.

    Raises:
        ConfigError: the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}; give another --port or --host") from error
