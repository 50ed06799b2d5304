"""Arguments that several commands share: saved ensembles, policies, and the fields of `EnsembleConfig`."""

from __future__ import annotations

import pytest

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, StaticPolicy, load_demo_members, load_demo_policy
from hf_rlae.cli import arguments
from hf_rlae.cli.loading import build_ensemble
from hf_rlae.cli.main import build_parser, main
from hf_rlae.zoo.loader import MEMBER_SETS, MEMBERS_FOLDER, POLICIES_FOLDER

DEMO = [str(MEMBERS_FOLDER / name) for name in MEMBER_SETS["different"]]
QUESTION = "7+5*3="


@pytest.fixture
def saved(tmp_path) -> str:
    """A saved ensemble of the embedded members, with settings that are no defaults."""
    ensemble = EnsembleForCausalLM.from_members(
        load_demo_members(), StaticPolicy([0.5, 0.25, 0.25]), span_length=3, warp="members"
    )
    ensemble.save_pretrained(tmp_path / "ensemble", save_members=True)
    return str(tmp_path / "ensemble")


def built(*given: str) -> EnsembleForCausalLM:
    args = build_parser().parse_args(["generate", *given, "--prompt", QUESTION, "--device", "cpu"])
    arguments.check_shared(args)
    return build_ensemble(args)


def text(*given: str, capsys) -> str:
    capsys.readouterr()
    assert main(["generate", *given, "--prompt", QUESTION, "--max-new-tokens", "16", "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_the_name_of_saved_ensembles_is_that_of_their_config():
    assert EnsembleConfig.model_type == arguments.ENSEMBLE


def test_options_reach_the_config():
    given = ("--mixing", "power", "--grain", "byte", "--warp", "members", "--weight-unit", "byte", "--span-length", "3")
    config = built(*DEMO, *given).config
    assert (config.mixing, config.grain, config.warp, config.weight_unit) == ("power", "byte", "members", "byte")
    assert config.span_length == 3


def test_a_saved_ensemble_stands_in_place_of_members(saved, capsys):
    members = [f"{saved}/members/{index}-{name}" for index, name in enumerate(MEMBER_SETS["different"])]
    same = ("--weights", "0.5,0.25,0.25", "--span-length", "3", "--warp", "members")
    assert text(saved, capsys=capsys) == text(*members, *same, capsys=capsys)


def test_options_change_a_saved_ensemble_and_the_rest_stays(saved):
    config = built(saved, "--mixing", "power").config
    assert (config.mixing, config.span_length, config.warp) == ("power", 3, "members")
    assert built(saved, "--weights", "0,0,1").policy.weights == [0, 0, 1]


def test_reports_name_the_members_of_a_saved_ensemble(saved, capsys):
    shown = text(saved, "--table", "--show-weights", capsys=capsys)
    assert all(name[:8] in shown for name in MEMBER_SETS["different"])


def test_a_learned_policy_gives_the_weights_for_spans_of_its_own_length(capsys):
    policy = load_demo_policy()
    ensemble = EnsembleForCausalLM.from_members(load_demo_members(), policy, span_length=policy.config.span_length)
    inputs = ensemble.tokenizer([QUESTION], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=16, do_sample=False)
    expected = ensemble.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text(*DEMO, "--policy", str(POLICIES_FOLDER / "different"), capsys=capsys) == expected + "\n"


@pytest.mark.parametrize("name", ["uniform", "entropy", "perplexity"])
def test_policies_by_name(name):
    assert built(*DEMO, "--policy", name).policy.registered_name == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--policy", "entropi"), "did you mean 'entropy'?"),
        (("--policy", "static"), "--policy 'static' needs weights: give --weights [...] in its place, one per member"),
        (("--policy", "./none"), "--policy: ./none is not a folder"),
        (("--policy", "entropy", "--weights", "1,1,1"), "leave one of them out"),
        (("--weights", "1,2"), "--weights: 2 given for 3 members"),
        (("--warp", "member"), "did you mean 'members'?"),
        (("--weight-unit", "bytes"), "did you mean 'byte'?"),
        (("--chat-template", "./none"), "--chat-template: ./none cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, given, said):
    assert main(["generate", *DEMO, "--prompt", QUESTION, "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-rlae: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_saved_ensemble_is_no_member(saved, capsys):
    assert main(["generate", saved, DEMO[0], "--prompt", QUESTION]) == 2
    assert f"{saved} is a saved ensemble, not a member" in capsys.readouterr().err
    assert main(["generate", saved, "--weights", "1,2", "--prompt", QUESTION]) == 2
    assert "--weights: 2 given for 3 members" in capsys.readouterr().err
