"""The run of the host of a plain `generate`."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from hf_rlae.ensemble.engines.host_runs import ReadingsHost
from hf_rlae.members import ReadingsRun, Update
from tests.support.tiers import draws
from tests.support.worlds import bpe, build, pieces_only


@cache
def host_of(seed):
    """A host whose longer tokens are lent to different strings: after `a`, `b` receives `abab`, and `bc` `abcb`."""
    return build([pieces_only("a", "b", "c", "abab", "abcb", "cbbca", "cba"), bpe("abc", "b c", "b b")], seed).voices[0]


class Fed:
    """A host whose model has generated some ids, and the run of another member with the same model."""

    def __init__(self, voice, first):
        self.voice, self.ids = voice, [first]
        made = (voice.member, voice.vocabulary, voice.alignment)
        self.host, self.run = ReadingsHost(*made, min_reading=1e-9), ReadingsRun(*made, min_reading=1e-9)
        self.run.begin([self.ids])
        self._feed()
        self.host.admit([None])

    def _feed(self):
        text = torch.tensor([self.ids])
        self.host.feed(self.voice.member.model(text).logits[:, -1], None, text, [0])

    def may_generate(self, i):
        """Whether both read the same ids: no unfinished token ends with the bytes of `i`."""
        raw = self.voice.vocabulary.pieces[i]
        return not any(tail and tail + raw in self.voice.vocabulary.ids_of for _, tail, _, _ in self.run.readings(0))

    def generate(self, i, r, q):
        """Takes in an id, of which the members with the tokenizer proposed `r` whole and `q` unfinished."""
        self.ids.append(i)
        self._feed()
        for run in (self.host, self.run):
            run.advance([Update(self.voice.vocabulary.pieces[i], r, q)])


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(draws(2, 60)))
def test_the_host_has_the_readings_of_any_other_member(seed):
    """Law: where the ids that a member reads are those that were generated, it does not matter who runs the model."""
    rng = random.Random(seed)
    num_restricted = 0
    voice = host_of(seed)
    for _ in range(8):
        fed = Fed(voice, rng.choice(voice.text_ids))
        for _ in range(5):
            ids = [i for i in voice.text_ids if fed.may_generate(i)]
            if not ids:
                break
            r, q, o = (rng.random() for _ in range(3))
            fed.generate(rng.choice(ids), r / (r + q + o), q / (r + q + o))
            host, other = fed.host.readings(0), fed.run.readings(0)
            assert [reading[1::2] for reading in host] == [reading[1::2] for reading in other]
            torch.testing.assert_close([a for _, _, a, _ in host], [a for _, _, a, _ in other], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(fed.host.distribution(), fed.run.distribution())
            num_restricted += any(lent for *_, lent in host)
    assert num_restricted > 0, "no member was inside a token that was lent"
