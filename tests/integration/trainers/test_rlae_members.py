"""What a trained policy keeps of the members that it was trained with, and what happens with others."""

from __future__ import annotations

import json

from hf_rlae import EnsembleForCausalLM, PolicyModel
from hf_rlae.ensemble.policy_fit import describe_members
from tests.support.rlae import ensemble_of, members, trainer_of


def test_a_trained_policy_names_its_members(tmp_path, caplog):
    """Three lines load it with the same members and nothing is said; with others, one warning counts what differs."""
    places = []
    for name, (model, tokenizer) in zip(("one", "two"), members("different", num_hidden_layers=1), strict=True):
        places.append(str(tmp_path / "private" / name))
        model.save_pretrained(places[-1])
        tokenizer.save_pretrained(places[-1])
    ensemble = ensemble_of(given=[*EnsembleForCausalLM.from_members(places).members])
    trainer = trainer_of(tmp_path / "out", ensemble=ensemble, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "policy"))
    written = (tmp_path / "policy" / "config.json").read_text()
    assert json.loads(written)["members"] == describe_members(ensemble)
    assert [entry["id"] for entry in json.loads(written)["members"]] == ["one", "two"]
    assert "private" not in written
    caplog.clear()
    again = EnsembleForCausalLM.from_members(places, policy=str(tmp_path / "policy"), span_length=2)
    assert not caplog.records
    assert isinstance(again.policy, PolicyModel)
    EnsembleForCausalLM.from_members(places[::-1], policy=str(tmp_path / "policy"), span_length=2)
    assert [record.getMessage() for record in caplog.records if "2 ids, 2 vocabularies" in record.getMessage()]
