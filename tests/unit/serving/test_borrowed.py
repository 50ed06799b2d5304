"""Members of transformers' serving code and of uvicorn that the server uses, which neither documents.

A new release that changes one of these fails here, by name, and not somewhere inside a request.
"""

from __future__ import annotations

import inspect

import pytest

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason="hf-rlae serve needs the extra serve")

from transformers.cli.serving import server  # noqa: E402
from transformers.cli.serving.chat_completion import ChatCompletionHandler  # noqa: E402
from transformers.cli.serving.completion import CompletionHandler  # noqa: E402
from transformers.cli.serving.model_manager import ModelManager  # noqa: E402
from transformers.cli.serving.utils import BaseHandler, InferenceThread  # noqa: E402
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402

BORROWED = {
    # called by the package
    (server, "build_server"): [
        "model_manager", "chat_handler", "completion_handler", "response_handler", "transcription_handler",
        "systemone_handler", "generation_state", "enable_cors",
    ],
    (CompletionHandler, "_build_chunk_sse"): ["self", "request_id", "model_id", "text", "finish_reason", "usage"],
    (ChatCompletionHandler, "_build_chunk_sse"): [
        "self", "request_id", "content", "model", "role", "finish_reason", "tool_calls", "usage", "reasoning_content",
    ],
    (ChatCompletionHandler, "_build_completion"): [
        "self", "request_id", "content", "model_id", "finish_reason", "usage", "tool_calls", "reasoning_content",
    ],
    (BaseHandler, "__init__"): ["self", "model_manager", "generation_state", "chat_template_kwargs"],
    (InferenceThread, "submit"): ["self", "fn", "args", "kwargs"],
    # called by transformers or uvicorn, and overridden
    (CompletionHandler, "handle_request"): ["self", "body", "request_id"],
    (ChatCompletionHandler, "handle_request"): ["self", "body", "request_id"],
    (ModelManager, "get_gen_models"): ["cache_dir"],
    (ModelManager, "process_model_name"): ["model_id"],
    (ModelManager, "load_model_and_processor"): [
        "self", "model_id_and_revision", "progress_callback", "tqdm_class", "gguf_file",
    ],
    (ModelManager, "load_model_streaming"): ["self", "model_id_and_revision", "gguf_file"],
    (ModelManager, "shutdown"): ["self"],
    (H11Protocol, "connection_made"): ["self", "transport"],
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), BORROWED, ids=lambda value: getattr(value, "__name__", value))
def test_signatures(owner, name):
    assert list(inspect.signature(getattr(owner, name)).parameters) == BORROWED[owner, name]
