"""Members that are adapters: of one model in memory, or in a folder with `adapter_config.json`."""

from __future__ import annotations

import json
import threading
import types

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from hf_rlae import ConfigError, EnsembleForCausalLM, MemberError
from hf_rlae.members import Member
from hf_rlae.trainers.durable.private_saves import hide_base
from tests.support.ensembles import TEXTS, encode, endless
from tests.support.models import pair, with_adapters

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def own_adapters():
    """A model with two adapters that transformers' own `add_adapter` made; it is no `PeftModel`."""
    model, tokenizer = pair("llama", num_hidden_layers=1)
    for name in ("one", "two"):
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "up_proj"]), name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(len(name)))
            if "lora_A.two" in name:
                parameter.neg_()
    return model, tokenizer


@pytest.mark.parametrize("adapter", ["one", "two", None])
def test_transformers_own_adapters(adapter):
    """Law: one member = that member, for a model with `add_adapter`, by name or with its active adapter."""
    model, tokenizer = own_adapters()
    model.set_adapter("one")
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)], adapter_names=[adapter])
    with torch.no_grad():
        got = ensemble(**encode(TEXTS[0])).logits
        model.set_adapter(adapter or "one")
        assert torch.equal(got, model(**encode(TEXTS[0])).logits)
        model.disable_adapters()
        assert not torch.equal(got, model(**encode(TEXTS[0])).logits)


def test_plain_use_of_the_model_is_not_disturbed():
    """Two adapters of one model as members; other threads call the model itself with its active adapter meanwhile."""
    model, tokenizer = pair("llama", num_hidden_layers=1)
    model = with_adapters(model)
    inputs = encode(TEXTS[0])
    with torch.no_grad():
        expected = model(**inputs).logits
    ensemble = endless([(model, tokenizer)] * 2, adapter_names=["one", "two"])
    done, differences = threading.Event(), []

    def call_plainly():
        with torch.no_grad():
            while not done.is_set():
                differences.append(float((model(**inputs).logits - expected).abs().max()))

    thread = threading.Thread(target=call_plainly)
    thread.start()
    for _ in range(3):
        ensemble.generate(**inputs, **GREEDY)
    done.set()
    thread.join()
    assert differences
    assert max(differences) == 0.0
    assert model.active_adapter == "one"


def test_members_of_one_model_share_its_weights():
    model, tokenizer = pair("llama", num_hidden_layers=1)
    model = with_adapters(model)
    member = Member(model, tokenizer, adapter_name="two")
    theirs = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in member.wrapper.parameters()} == theirs
    assert member.config is model.config
    with torch.no_grad():  # training the adapter of the model trains that of the member
        model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_B.two.weight").mul_(2)
    model.set_adapter("two")
    assert torch.equal(member.model(**encode(TEXTS[0])).logits, model(**encode(TEXTS[0])).logits)


def test_methods_that_call_the_model_itself_are_not_copied():
    """As TRL replaces `forward` of the models that it trains; hooks of accelerate, which know their module, stay."""
    base, tokenizer = pair("llama", num_hidden_layers=1)
    original = base.forward
    base.forward = types.MethodType(lambda self, *args, **kwargs: original(*args, **kwargs), base)
    model = with_adapters(base)
    add_hook_to_module(base.lm_head, AlignDevicesHook("cpu"))
    member = Member(model, tokenizer, adapter_name="two")
    got = member.model(**encode(TEXTS[0])).logits
    model.set_adapter("two")
    assert torch.equal(got, model(**encode(TEXTS[0])).logits)
    assert "forward" in vars(member.model.get_output_embeddings())


@pytest.fixture
def saved(tmp_path):
    """A base model in a folder, and a folder of two adapters as `CoryTrainer.save_model` writes it."""
    base, tokenizer = pair("llama", num_hidden_layers=1)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    model = with_adapters(base, ["default", "agent-2"])
    model.save_pretrained(tmp_path / "adapters")
    tokenizer.save_pretrained(tmp_path / "adapters")
    return tmp_path, model


@pytest.mark.parametrize("adapter", ["default", "agent-2", None])
@pytest.mark.parametrize("where", ["elsewhere", "beside", "inside", "without tokenizer"])
def test_folders_of_adapters(saved, tmp_path_factory, adapter, where):
    """An adapter loads with its base model, which is elsewhere or in the same folder; so does each of several."""
    folder, model = saved
    if where == "inside":
        for path in (folder / "base").iterdir():
            path.rename(folder / "adapters" / path.name)
    if where == "beside":  # as trainers save it, without a path of the machine
        hide_base(folder / "adapters")
        assert str(folder) not in (folder / "adapters" / "adapter_config.json").read_text()
        folder = folder.rename(tmp_path_factory.mktemp("moved") / "here")
    if where == "without tokenizer":
        for path in (folder / "adapters").glob("tokenizer*"):
            path.unlink()
    ensemble = EnsembleForCausalLM.from_members([str(folder / "adapters")], adapter_names=[adapter])
    model.set_adapter(adapter or "default")
    got, expected = (m(**encode(TEXTS[0])).logits for m in (ensemble.members[0].model, model))
    torch.testing.assert_close(got, expected)


def test_a_saved_ensemble_of_adapters(saved):
    """Members that are folders of adapters are saved by folder and name of the adapter, and load again."""
    folder, _ = saved
    source = str(folder / "adapters")
    ensemble = EnsembleForCausalLM.from_members([source, source], adapter_names=["default", "agent-2"])
    ensemble.save_pretrained(folder / "ensemble")
    loaded = EnsembleForCausalLM.from_pretrained(folder / "ensemble", allow_outside=True)
    torch.testing.assert_close(loaded(**encode(TEXTS[0])).logits, ensemble(**encode(TEXTS[0])).logits)


def test_a_folder_with_named_adapters_only(saved):
    """The layout of PEFT: the folder itself is no adapter, and the error names those inside."""
    folder, _ = saved
    (folder / "adapters" / "adapter_config.json").unlink()
    with pytest.raises(MemberError, match=r"adapters are in \['\S+agent-2'\]: give one of these folders"):
        Member.load(str(folder / "adapters"))
    assert Member.load(str(folder / "adapters" / "agent-2")).source.endswith("agent-2")


def test_adapters_that_cannot_be_used(saved):
    folder, _ = saved
    with pytest.raises(ConfigError, match=r"adapter_name='agent-3'.*\['default', 'agent-2'\]"):
        Member.load(str(folder / "adapters"), adapter_name="agent-3")
    (folder / "adapters" / "agent-2" / "adapter_model.safetensors").unlink()
    with pytest.raises(MemberError, match="adapters cannot be loaded"):
        Member.load(str(folder / "adapters"), adapter_name="agent-2")
    path = folder / "adapters" / "adapter_config.json"
    for base, message in (
        (None, "adapter without a base model"),
        ("./gone", "base model './gone' is not at that place"),
        (str(folder / "gone"), "cannot be loaded"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
        with pytest.raises(MemberError, match=message):
            Member.load(str(folder / "adapters"))
    model, tokenizer = pair("llama", num_hidden_layers=1)
    virtual = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(MemberError, match="virtual tokens"):
        EnsembleForCausalLM.from_members([(virtual, tokenizer)])
