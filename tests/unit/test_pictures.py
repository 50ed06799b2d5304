"""Pictures of the documentation that show figures show those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_rlae import EnsembleForCausalLM, load_demo_members, load_demo_policy

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def test_the_spans_of_the_picture_are_those_of_the_embedded_members():
    ensemble = EnsembleForCausalLM.from_members(load_demo_members(), load_demo_policy(), span_length=2)
    inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False, return_dict_in_generate=True)
    weights = [weight for span in out.span_weights[0].tolist() for weight in span if weight >= 0.2]
    picture = (IMAGES / "span.svg").read_text(encoding="utf-8")
    assert [float(shown) for shown in re.findall(r">([01]\.\d\d)<", picture)] == pytest.approx(weights, abs=0.011)
    written = "".join(re.findall(r'font-size="16".*?>(.*?)<', picture)).replace("␣", " ")
    assert ensemble.tokenizer.decode(out.sequences[0], skip_special_tokens=True) == f"7+5*3={written}"
