"""The endpoints `/v1/completions` and `/v1/chat/completions`, with transformers' own form of the responses.

transformers' handlers read the request and tokenize it on the event loop, seed another thread than the one that
samples, decode ids with the backend of one tokenizer, and send a stop string. These run a [`CompletionJob`] instead.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseHandler

from hf_rlae.errors import HfRlaeError
from hf_rlae.serving.completion_job import CompletionJob, Refusal, job_with_queue
from hf_rlae.serving.completion_request import read_request
from hf_rlae.serving.model_manager import EnsembleManager


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error in the form of OpenAI's interface, whose clients show the message."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class EnsembleHandler(BaseHandler, ABC):  # type: ignore[misc]
    """What both endpoints share; a mixin for transformers' handlers.

    Args:
        manager (`EnsembleManager`): with the ensemble.
        defaults (`Mapping[str, Any]`): keyword arguments of `generate` for requests that do not say how to choose
            tokens.
        max_new_tokens (`int`): per request.
    """

    is_chat: bool

    def __init__(self, manager: EnsembleManager, defaults: Mapping[str, Any], max_new_tokens: int) -> None:
        super().__init__(manager, manager.state)
        self.manager = manager
        self.defaults = defaults
        self.max_new_tokens = max_new_tokens

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answers a request, or raises an `HTTPException` that says why not."""
        try:
            request = read_request(body, self.is_chat, self.defaults, self.max_new_tokens)
        except HfRlaeError as error:
            raise HTTPException(400, str(error)) from error
        try:
            self.manager.check_name(body.get("model"))
        except HfRlaeError as error:
            raise HTTPException(404, str(error)) from error
        job, queue = job_with_queue(self.manager.ensemble, request)
        self.manager.thread.submit(job.run)
        try:
            first = await queue.get()
            if isinstance(first, Refusal):
                raise HTTPException(first.status, first.message)
            if request.stream:
                events = self._events(job, queue, request_id)
                return StreamingResponse(events, media_type="text/event-stream")
            pieces: list[str] = []
            while (piece := await queue.get()) is not None:
                if isinstance(piece, Refusal):
                    raise HTTPException(piece.status, piece.message)
                pieces.append(piece)
            return JSONResponse(self.whole(request_id, "".join(pieces), job))
        except asyncio.CancelledError:  # the client is gone, or has waited too long
            job.cancel()
            raise

    async def _events(self, job: CompletionJob, queue: asyncio.Queue[Any], request_id: str) -> AsyncIterator[str]:
        """The stream of a completion: pieces, the end with the usage, and `[DONE]`."""
        try:
            yield self.event(request_id, "", is_first=True)
            while (piece := await queue.get()) is not None:
                if isinstance(piece, Refusal):
                    yield f"data: {json.dumps(error_body(piece.status, piece.message))}\n\n"
                    return
                yield self.event(request_id, piece)
            yield self.event(request_id, None, finish_reason=job.finish_reason, usage=self.usage(job))
            yield "data: [DONE]\n\n"
        finally:
            job.cancel()

    def usage(self, job: CompletionJob) -> CompletionUsage:
        """The numbers of tokens; those of the prompt are the first member's."""
        return CompletionUsage(
            prompt_tokens=job.prompt_tokens,
            completion_tokens=job.completion_tokens,
            total_tokens=job.prompt_tokens + job.completion_tokens,
        )

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.manager.force_model)

    @abstractmethod
    def whole(self, request_id: str, text: str, job: CompletionJob) -> dict[str, Any]:
        """A response that is not streamed."""

    @abstractmethod
    def event(self, request_id: str, text: str | None, is_first: bool = False, **end: Any) -> str:
        """An event of a stream; the last one has no text, but `finish_reason` and `usage`."""


class TextHandler(EnsembleHandler, CompletionHandler):  # type: ignore[misc]
    """`/v1/completions`."""

    is_chat = False

    def whole(self, request_id: str, text: str, job: CompletionJob) -> dict[str, Any]:
        """See [`EnsembleHandler`]."""
        choice: Any = CompletionChoice(text=text, index=0, logprobs=None, finish_reason=job.finish_reason)  # type: ignore[arg-type]
        found = Completion(
            id=request_id,
            created=int(time.time()),
            model=self.name,
            choices=[choice],
            object="text_completion",
            usage=self.usage(job),
        )
        return found.model_dump(exclude_none=True)

    def event(self, request_id: str, text: str | None, is_first: bool = False, **end: Any) -> str:
        """See [`EnsembleHandler`]."""
        return self._build_chunk_sse(request_id, self.name, text=text or "", **end)


class ChatHandler(EnsembleHandler, ChatCompletionHandler):  # type: ignore[misc]
    """`/v1/chat/completions`."""

    is_chat = True

    def whole(self, request_id: str, text: str, job: CompletionJob) -> dict[str, Any]:
        """See [`EnsembleHandler`]."""
        return self._build_completion(request_id, text, self.name, job.finish_reason, usage=self.usage(job))

    def event(self, request_id: str, text: str | None, is_first: bool = False, **end: Any) -> str:
        """See [`EnsembleHandler`]."""
        role = "assistant" if is_first else None
        return self._build_chunk_sse(request_id, content=text, model=self.name, role=role, **end)
