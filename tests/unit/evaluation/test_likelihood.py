"""Log-probabilities of given completions."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, InputError, StaticPolicy, load_demo_member
from hf_rlae.evaluation import likelihood
from hf_rlae.evaluation.likelihood import completion_ids, completion_logps
from tests.support.different_tokenizers import member, trio
from tests.support.ensembles import policy_of_text
from tests.support.tokenizers import raw_bytes, sentencepiece_bpe

PROMPTS = ("The 3 big dogs", "Once", "def f(x):")
COMPLETIONS = (" ran 12 miles", " upon a time", " return x")


def of_member(model, tokenizer, prompt, ids):
    """From one forward pass of the model itself."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logps = model(torch.tensor([prompt_ids + ids])).logits[0].float().log_softmax(-1)
    return sum(float(logps[len(prompt_ids) - 1 + at, token]) for at, token in enumerate(ids))


@pytest.mark.parametrize("tokenizer", [raw_bytes, sentencepiece_bpe])
def test_one_member_gives_its_own_log_probabilities(tokenizer):
    model, own = member("gpt2", tokenizer)
    ensemble = EnsembleForCausalLM.from_members([(model, own)])
    got, lengths = completion_logps(ensemble, PROMPTS, COMPLETIONS)
    for prompt, text, logp, length in zip(PROMPTS, COMPLETIONS, got, lengths, strict=True):
        ids = completion_ids(ensemble, text)
        assert length == len(ids)
        assert logp == pytest.approx(of_member(model, own, prompt, ids), abs=1e-4)


@pytest.mark.parametrize("grain", ["token", "byte"])
def test_different_tokenizers_give_the_loss_of_labels(grain):
    ensemble = trio(policy_of_text, grain=grain, span_length=2)
    got, _ = completion_logps(ensemble, PROMPTS, COMPLETIONS)
    for prompt, text, logp in zip(PROMPTS, COMPLETIONS, got, strict=True):
        start = ensemble.tokenizer(prompt)["input_ids"]
        ids = ensemble.tokenizer.completion_ids(text)
        labels = torch.tensor([[-100] * len(start) + ids])
        with torch.no_grad():
            loss = ensemble(torch.tensor([start + ids]), labels=labels).loss
        assert logp == pytest.approx(-float(loss) * len(ids), abs=1e-3)


def test_a_batch_gives_what_single_rows_give():
    ensemble = trio(policy_of_text)
    batch, _ = completion_logps(ensemble, PROMPTS, COMPLETIONS)
    single = [completion_logps(ensemble, [p], [c])[0][0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert batch == pytest.approx(single, abs=1e-4)


def test_parts_of_a_batch_give_the_same(monkeypatch):
    ensemble = trio()
    whole = completion_logps(ensemble, PROMPTS, COMPLETIONS)
    monkeypatch.setattr("hf_rlae.evaluation.likelihood._MAX_CELLS", 1)
    assert completion_logps(ensemble, PROMPTS, COMPLETIONS)[0] == pytest.approx(whole[0], abs=1e-4)


def test_another_policy_is_used_for_the_call_alone():
    ensemble = trio()
    first = EnsembleForCausalLM.from_members([ensemble.members[0]])
    alone, _ = completion_logps(first, PROMPTS, COMPLETIONS)
    got, _ = completion_logps(ensemble, PROMPTS, COMPLETIONS, StaticPolicy([1, 0, 0]))
    assert got == pytest.approx(alone, abs=1e-3)
    assert completion_logps(ensemble, PROMPTS, COMPLETIONS)[0] != pytest.approx(alone, abs=1e-2)


def test_the_completions_of_one_byte_have_all_probability():
    """After any prompt, the probabilities of all ids sum to 1: with bytes, of all 256 and the end."""
    ensemble = EnsembleForCausalLM.from_members([member("gpt2", raw_bytes)])
    logps, _ = completion_logps(ensemble, ["dogs"] * 128, [chr(code) for code in range(128)])
    assert 0 < sum(map(math.exp, logps)) <= 1


def test_a_completion_without_text_is_refused():
    with pytest.raises(InputError, match="no tokens"):
        completion_logps(trio(), ["dogs", "cats"], [" ran", ""])


@pytest.mark.parametrize("kind", ["different", "shared", "one"])
@pytest.mark.parametrize("cells", [2**8, 2**11])
def test_parts_of_texts_have_the_same_log_probabilities(monkeypatch, kind, cells):
    names = {"different": ("addition-characters", "multiplication-pieces"), "shared": ("addition-characters",) * 2}
    members = [load_demo_member(name) for name in names.get(kind, ("addition-characters",))]
    ensemble = EnsembleForCausalLM.from_members(members, span_length=2)
    prompts = ["7+5*3=", "What is 6 times 2?", "9-4="]
    texts = [" 5*3=15; 7+15=22. 22", " 6*2=12. 12", " 5"]
    whole = completion_logps(ensemble, prompts, texts)
    sizes = []
    forward = EnsembleForCausalLM.forward

    def watched(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        sizes.append(output.logits.numel())
        return output

    monkeypatch.setattr(EnsembleForCausalLM, "forward", watched)
    monkeypatch.setattr(likelihood, "_MAX_CELLS", cells)
    logps, lengths = completion_logps(ensemble, prompts, texts)
    assert lengths == whole[1]
    assert logps == whole[0] if kind == "different" else logps == pytest.approx(whole[0], abs=1e-4)
    assert len(sizes) > 1
    if kind == "different":  # rows are read together, and logits of a column at least are needed
        assert max(sizes) <= max(cells, len(texts) * ensemble.engine.vocab_size)
