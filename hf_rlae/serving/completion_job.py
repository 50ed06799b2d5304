"""One completion: runs on the thread that generates, and hands its text to the event loop piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.continuation import ContinuationDecoder, StopRequest
from hf_rlae.errors import HfRlaeError, InternalError, NonFiniteError, one_line, with_type
from hf_rlae.serving.completion_request import CompletionRequest
from hf_rlae.vocabulary import token_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why there is no text, or no more of it.

    Attributes:
        status (`int`): the HTTP status: 400 if the client can fix it, else 500.
        message (`str`): in words.
    """

    status: int
    message: str


class StopSearch:
    """Cuts a text that arrives in pieces before the first of several strings.

    A piece that may be the beginning of such a string is held back until the next one decides.

    Args:
        stops (`tuple[str, ...]`): the strings.

    Example:

    >>> search = StopSearch(("END",))
    >>> [search.push(piece) for piece in ("one E", "2 EN", "D two")], search.is_found
    (['one ', 'E2 ', ''], True)
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.is_found = False

    def push(self, piece: str) -> str:
        """Adds a piece, and returns the text that is now final."""
        if self.is_found:
            return ""
        text = self._held + piece
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.is_found, self._held = True, ""
            return text[: min(ends)]
        keep = max(
            (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Returns the text that was held back."""
        held, self._held = self._held, ""
        return held


class CompletionJob(BaseStreamer):
    """One request at the ensemble, as a streamer of its own `generate`.

    Args:
        ensemble (`EnsembleForCausalLM`): who writes.
        request (`CompletionRequest`): what is asked for.
        send (callable): is called, on the thread that generates, with an empty piece once the prompt is accepted, with
            every piece of the text, with a [`Refusal`] if it cannot be written, and at the end with `None`.

    Attributes:
        prompt_tokens (`int`), completion_tokens (`int`): for the usage.
        finish_reason (`str`): `"stop"` or `"length"`.
    """

    def __init__(
        self, ensemble: EnsembleForCausalLM, request: CompletionRequest, send: Callable[[Any], object]
    ) -> None:
        self._ensemble = ensemble
        self._request = request
        self._send = send
        self._end_ids = set(token_ids(ensemble.generation_config.eos_token_id))
        self._decoder: ContinuationDecoder | None = None
        self._search = StopSearch(request.stop)
        self._stop = StopRequest()
        self.prompt_tokens = self.completion_tokens = 0
        self.finish_reason = "length"

    def cancel(self) -> None:
        """Ends the text at the next token; from any thread."""
        self._stop.is_made = True

    def run(self) -> None:
        """Writes the text. Errors are sent, not raised."""
        try:
            if not self._stop.is_made:
                self._generate()
        except (HfRlaeError, ValueError) as error:
            is_ours = isinstance(error, InternalError | NonFiniteError)
            self._send(Refusal(500 if is_ours else 400, self._without_paths(one_line(str(error)))))
        except Exception as error:
            logger.error("a request failed: %s", with_type(error, one_line(str(error))))
            logger.debug("where it failed", exc_info=True)
            self._send(Refusal(500, f"the server failed to answer ({type(error).__name__}); its log says more"))
        finally:
            self._send(None)

    def _without_paths(self, message: str) -> str:
        """A message in which members are not named by their folders on this machine."""
        for member in self._ensemble.members:
            message = message.replace(str(member.name), Path(str(member.name)).name or "member")
        return message

    def _generate(self) -> None:
        request, ensemble = self._request, self._ensemble
        if isinstance(request.prompt, str):
            inputs = ensemble.tokenizer([request.prompt], return_tensors="pt")
        else:
            inputs = ensemble.tokenizer.apply_chat_template([request.prompt], add_generation_prompt=True)
        self.prompt_tokens = inputs["input_ids"].shape[1]
        devices = [device for member in ensemble.members if (device := member.device).type != "cpu"]
        with torch.random.fork_rng(devices, enabled=request.seed is not None, device_type=_accelerator(devices)):
            if request.seed is not None:
                torch.manual_seed(request.seed)
            ensemble.generate(
                **{name: value.to(ensemble.device) for name, value in inputs.items()},
                **request.options,
                num_beams=1,
                streamer=self,
                stopping_criteria=StoppingCriteriaList([self._stop]),
            )

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt of shape `(1, L)` first, then tokens of shape `(1,)`."""
        if self._decoder is None:
            self._decoder = ContinuationDecoder(self._ensemble.tokenizer, value.flatten().tolist())
            self._send("")
            return
        if self._stop.is_made:  # transformers writes one token more
            return
        self.completion_tokens += 1
        if int(value) in self._end_ids:
            self.finish_reason = "stop"
        self._write(self._decoder.push([int(value)]))

    def end(self) -> None:
        """Sends the text that was held back."""
        if self._decoder is not None:
            self._write(self._decoder.finish())
            self._send_text(self._search.finish())

    def _write(self, piece: str) -> None:
        self._send_text(self._search.push(piece))
        if self._search.is_found:
            self.finish_reason = "stop"
            self._stop.is_made = True

    def _send_text(self, text: str) -> None:
        if text:
            self._send(text)


def _accelerator(devices: list[torch.device]) -> str:
    return devices[0].type if devices else "cuda"


def job_with_queue(
    ensemble: EnsembleForCausalLM, request: CompletionRequest
) -> tuple[CompletionJob, asyncio.Queue[Any]]:
    """A job whose messages arrive in a queue of the running event loop."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def send(message: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, message)

    return CompletionJob(ensemble, request, send), queue
