"""Shared parts of tests of bad input: two ensembles, and a check of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hf_rlae import EnsembleForCausalLM
from hf_rlae.errors import HfRlaeError
from tests.support.ensembles import columns_read
from tests.support.models import pair
from tests.support.tokenizers import sentencepiece_bpe


def same(policy: Any = None, **options: Any) -> EnsembleForCausalLM:
    """Two members with one tokenizer."""
    return EnsembleForCausalLM.from_members([pair("llama"), pair("gpt2", 1)], policy, **options)


def different(policy: Any = None, **options: Any) -> EnsembleForCausalLM:
    """Two members with different tokenizers."""
    members = [pair("llama"), pair("gpt2", 1, sentencepiece_bpe())]
    return EnsembleForCausalLM.from_members(members, policy, **options)


@contextmanager
def refused(kind: type[Exception], *words: str, ensemble: EnsembleForCausalLM | None = None) -> Iterator[None]:
    """Checks the type of the error and the words of its message, and that no member was run."""
    models = [] if ensemble is None else [member.model for member in ensemble.members]
    with columns_read(*models) as calls, pytest.raises(kind) as caught:
        yield
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert isinstance(caught.value, HfRlaeError)
    assert not any(calls)
