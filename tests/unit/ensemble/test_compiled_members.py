"""Compiled members: a step is one graph per member and number of columns, and is never compiled twice."""

import pickle
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers import CompileConfig

from hf_rlae import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.members.compiled_steps import CompiledDecoder
from tests.support.different_tokenizers import encoded
from tests.support.ensembles import TEXTS, endless
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

SMALL = {"num_hidden_layers": 1}
OPTIONS = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def members(second=byte_level_bpe):
    return [pair("llama", 0, byte_level_bpe(), **SMALL), pair("gpt2", 1, second(), **SMALL)]


def breaks():
    return dict(counters["graph_break"])


@pytest.mark.parametrize(
    ("second", "most"),
    [(byte_level_bpe, 2), (sentencepiece_bpe, 6)],
    ids=["one tokenizer", "different tokenizers"],
)
def test_a_step_is_one_graph(second, most):
    """With different tokenizers, steps have 1, 2 or 4 columns: three graphs per member at most."""
    ensemble = EnsembleForCausalLM.from_members(members(second), end_token_ids=[[], []])
    inputs, graphs = encoded(ensemble, *TEXTS), CompileCounter()
    expected = ensemble.generate(**inputs, **OPTIONS)
    ensemble.compile(backend=graphs, fullgraph=True)
    assert torch.equal(ensemble.generate(**inputs, **OPTIONS), expected)
    known = graphs.frame_count
    assert 2 <= known <= most
    assert breaks() == {}
    again = encoded(ensemble, *reversed(TEXTS))
    for more in ({}, {"num_return_sequences": 1, "do_sample": True}):
        ensemble.generate(**again, **{**OPTIONS, **more})
    assert graphs.frame_count <= most
    if second is byte_level_bpe:
        assert graphs.frame_count == known


def test_a_compiled_model_is_a_member(tmp_path):
    """`torch.compile(model)` is taken as it is: its backend runs the steps, and the ensemble is saved and loaded."""
    first, second = members()
    expected = endless([first, second])
    inputs, graphs = encoded(expected, *TEXTS), CompileCounter()
    ensemble = endless([(torch.compile(first[0], backend=graphs), first[1]), second])
    assert torch.equal(ensemble.generate(**inputs, **OPTIONS), expected.generate(**inputs, **OPTIONS))
    assert graphs.frame_count == 1
    assert type(ensemble.members[0].model) is type(first[0])
    ensemble.save_pretrained(tmp_path, save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(**inputs, **OPTIONS), expected.generate(**inputs, **OPTIONS))
    assert not loaded.members[0].is_compiled


def test_adapters_of_one_base_are_compiled_each():
    model, tokenizer = members()[0]
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False), adapter_name="one")
    model.add_adapter("two", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    both = [Member(model.eval(), tokenizer, adapter_name=name, end_token_ids=[]) for name in ("one", "two")]
    ensemble, graphs = EnsembleForCausalLM.from_members(both), CompileCounter()
    inputs = encoded(ensemble, *TEXTS)
    expected = ensemble.generate(**inputs, **OPTIONS)
    ensemble.compile(backend=graphs)
    assert torch.equal(ensemble.generate(**inputs, **OPTIONS), expected)
    assert graphs.frame_count == 2


def test_a_model_that_was_compiled_in_place():
    """A policy observes hidden states through a hook, which a compiled model would not call."""
    first, second = members()
    seen = []

    def policy(state):
        seen.append([None if states is None else states.clone() for states in state.hidden_states])
        return torch.full((state.batch_size, 2), 0.5)

    ensemble = endless([first, second], policy, span_length=3)
    inputs, graphs = encoded(ensemble, *TEXTS), CompileCounter()
    expected = ensemble.generate(**inputs, **OPTIONS)
    first[0].compile(backend=graphs)
    try:
        assert ensemble.members[0].is_compiled
        assert torch.equal(ensemble.generate(**inputs, **OPTIONS), expected)
    finally:
        first[0]._compiled_call_impl = None
    assert graphs.frame_count == 1
    half = len(seen) // 2
    for before, after in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(after, before)


def test_the_compile_config_of_a_call():
    """As in transformers, static caches compile by themselves on an accelerator, with `compile_config`."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    ensemble = endless(members())
    inputs, config = encoded(ensemble, *TEXTS), CompileConfig(backend=backend, mode=None)
    static = {**OPTIONS, "cache_implementation": "static", "compile_config": config}
    expected = ensemble.generate(**inputs, **static)
    assert graphs == []  # a CPU
    config._compile_all_devices = True  # as if it were an accelerator
    ensemble.generate(**inputs, **static, disable_compile=True)
    ensemble.generate(**inputs, **OPTIONS, compile_config=config)  # dynamic caches
    assert graphs == []
    assert torch.equal(ensemble.generate(**inputs, **static), expected)
    assert len(graphs) == 2


def test_a_remote_member_is_not_compiled(monkeypatch):
    """`ensemble.compile` leaves it as it is; its own `compile` says that it cannot."""
    ensemble = endless(members())
    first, second = ensemble.members
    monkeypatch.setattr(first, "is_remote", True)
    ensemble.compile(backend="eager")
    assert [first.is_compiled, second.is_compiled] == [False, True]
    with pytest.raises(ConfigError, match="runs in another process"):
        first.compile(backend="eager")


def test_pickled_members_are_not_compiled():
    member = Member(*members()[0])
    member.compile(backend="eager")
    CompiledDecoder(member.model.get_decoder(), member.compiler, ())
    assert not pickle.loads(pickle.dumps(member)).is_compiled


def test_the_model_itself_stays_as_it_was():
    """Its decoder runs compiled only inside a step, and only in the thread of that step."""
    model, _ = members()[0]
    decoder, calls = model.get_decoder(), []

    def compiler(function):
        def run(*args, **kwargs):
            calls.append(threading.get_ident())
            return function(*args, **kwargs)

        return run

    compiled, ids = CompiledDecoder(decoder, compiler, ()), torch.tensor([[3, 4]])
    with torch.no_grad():
        expected = model(ids).logits
        with compiled.used(2):
            assert torch.equal(model(ids).logits, expected)
            thread = threading.Thread(target=lambda: model(ids))
            thread.start()
            thread.join()
    assert calls == [threading.get_ident()]
    assert "forward" not in vars(decoder)
