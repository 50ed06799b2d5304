"""`hf-rlae`: texts, errors, exit codes, and the imports of `--help`."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member, StaticPolicy
from hf_rlae.cli import arguments as shared_arguments
from hf_rlae.cli import generation
from hf_rlae.cli.main import main
from hf_rlae.ensemble.outputs import EnsembleGenerateOutput
from hf_rlae.errors import InputError, MemberError
from hf_rlae.reports import member_table
from tests.support.models import pair
from tests.support.tokenizers import unigram

PROMPT = "Once upon a"
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two members with one tokenizer, as folders."""
    found = []
    for seed in (0, 1):
        model, tokenizer = pair("llama", seed, unigram(), max_position_embeddings=64)
        folder = tmp_path_factory.mktemp(f"member{seed}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found.append(str(folder))
    return found


def text_of(capsys) -> str:
    return capsys.readouterr().out


def generate(*arguments: str) -> int:
    return main(["generate", *arguments, "--max-new-tokens", "12", "--device", "cpu"])


def expected(folders, prompt: str, weights: list[float]) -> str:
    """The same text from the Python API."""
    ensemble = EnsembleForCausalLM.from_members(folders, policy=StaticPolicy(weights))
    inputs = ensemble.tokenizer([prompt], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=12, do_sample=False)
    return ensemble.tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.0, 1.0]])
def test_one_prompt_reads_as_one_text(folders, capsys, weights):
    listed = ",".join(map(str, weights))
    assert generate(*folders, "--prompt", PROMPT, "--weights", listed) == 0
    captured = capsys.readouterr()
    assert captured.out == expected(folders, PROMPT, weights) + "\n"
    assert captured.out.startswith(PROMPT)
    assert captured.err == ""  # no progress where stderr is not a terminal


def test_equal_weights_by_default(folders, capsys):
    assert generate(*folders, "--prompt", PROMPT) == 0
    assert text_of(capsys) == expected(folders, PROMPT, [0.5, 0.5]) + "\n"


def test_one_member_is_that_member(folders, capsys):
    assert generate(folders[1], "--prompt", PROMPT) == 0
    alone = text_of(capsys)
    assert generate(*folders, "--prompt", PROMPT, "--weights", "0,2") == 0
    assert text_of(capsys) == alone


def test_several_prompts_are_the_texts_of_each_alone(folders, capsys):
    prompts = [PROMPT, "The 3 big dogs ran 12 miles;"]
    alone = []
    for prompt in prompts:
        assert generate(*folders, "--prompt", prompt) == 0
        alone.append(text_of(capsys))
    assert generate(*folders, "--prompt", prompts[0], "--prompt", prompts[1]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n".join(alone)
    assert captured.err == ""


def test_samples_repeat_with_a_seed(folders, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        sampling = ["--sample", "--temperature", "1.5", "--top-p", "0.99", "--seed", seed]
        assert generate(*folders, "--prompt", PROMPT, *sampling) == 0
        texts.append(text_of(capsys))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("mixing", ["linear", "log", "power"])
def test_every_mixing_runs(folders, capsys, mixing):
    assert generate(*folders, "--prompt", PROMPT, "--mixing", mixing, "--span-length", "3") == 0
    assert text_of(capsys).startswith(PROMPT)


def test_contrast_with_alpha_1_is_the_first_member(folders, capsys):
    settings = ["--mixing", "contrast", "--mixing-kwargs", '{"alpha": 1.0}']
    assert generate(*folders, "--prompt", PROMPT, *settings) == 0
    assert text_of(capsys) == expected(folders, PROMPT, [1.0, 0.0]) + "\n"


def test_guidance_of_one_model(folders, capsys):
    """The model is given twice and loaded once; its text is that of transformers' own guidance."""
    settings = ["--mixing", "guidance", "--mixing-kwargs", '{"guidance_scale": 2.5}', "--negative-prompt", "They"]
    assert generate(folders[0], folders[0], "--prompt", PROMPT, *settings) == 0
    alone = Member.load(folders[0])
    ids, negative = (alone.tokenizer(text, return_tensors="pt")["input_ids"] for text in (PROMPT, "They"))
    expected = alone.model.generate(
        ids, max_new_tokens=12, do_sample=False, guidance_scale=2.5, negative_prompt_ids=negative
    )
    assert text_of(capsys).strip() == alone.tokenizer.decode(expected[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("grain", ["character", "byte", "common", "auto"])
def test_every_grain_runs(folders, capsys, grain):
    assert generate(*folders, "--prompt", PROMPT, "--mixing", "log", "--grain", grain) == 0
    assert text_of(capsys).startswith(PROMPT)


def test_table_shows_weights_and_log_probabilities(folders, capsys):
    assert generate(*folders, "--prompt", PROMPT, "--weights", "3,1", "--table") == 0
    lines = text_of(capsys).splitlines()
    ensemble = EnsembleForCausalLM.from_members(folders, policy=StaticPolicy([3, 1]))
    inputs = ensemble.tokenizer([PROMPT], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    for index, weight in enumerate(("0.750", "0.250")):
        mean = f"{float(out.member_logps[0, :, index].mean()):.3f}"
        assert any(weight in line and mean in line for line in lines), (weight, mean, lines)


def test_table_counts_where_members_were_run(folders, capsys):
    assert generate(*folders, "--prompt", PROMPT, "--weights", "1,0", "--table") == 0
    table = " ".join(text_of(capsys).split())
    ensemble = EnsembleForCausalLM.from_members(folders, policy=StaticPolicy([1, 0]))
    inputs = ensemble.tokenizer([PROMPT], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=12, do_sample=False)
    count = ids.shape[1] - inputs["input_ids"].shape[1]
    assert f" 1.000 {count} {count} -" in table
    assert " 0.000 0 0 -" in table


def test_table_leaves_out_tokens_that_a_member_cannot_propose():
    logps = torch.tensor([[[-1.0, -torch.inf], [-2.0, -3.0], [-3.0, torch.nan]]])
    out = EnsembleGenerateOutput(
        sequences=torch.zeros(1, 3, dtype=torch.long),
        span_weights=torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]),
        span_starts=torch.tensor([0, 2]),
        member_logps=logps,
    )
    columns = list(member_table(["a", "b"], out, torch.ones(1, 3, dtype=torch.bool)).columns)
    cells = [list(column.cells) for column in columns]
    assert cells == [["a", "b"], ["0.667", "0.333"], ["3", "2"], ["3", "1"], ["-2.000", "-3.000"]]


def test_table_needs_a_trace():
    out = EnsembleGenerateOutput(sequences=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="return_dict_in_generate=True"):
        member_table(["a", "b"], out, torch.ones(1, 3, dtype=torch.bool))


def test_warnings_come_after_the_text(folders, capsys, monkeypatch):
    def warn_within(ensemble, inputs, args, streamer, cache=None):
        logging.getLogger("hf_rlae.members").warning("a member drops out")
        streamer.put(inputs["input_ids"])
        streamer.put(inputs["input_ids"][0, -1:])
        assert capsys.readouterr().err == ""

    monkeypatch.setattr(generation, "_generate", warn_within)
    assert generate(*folders, "--prompt", PROMPT) == 0
    assert capsys.readouterr().err == "hf-rlae: warning: a member drops out\n"


def test_chat_renders_the_prompt_by_the_template(tmp_path, capsys):
    folders = []
    for seed in (0, 1):
        model, tokenizer = pair("llama", seed, unigram())
        for saved in (model, tokenizer):
            saved.save_pretrained(tmp_path / str(seed))
        (tmp_path / str(seed) / "chat_template.jinja").write_text(TEMPLATE)
        folders.append(str(tmp_path / str(seed)))
    assert generate(*folders, "--prompt", "Hi", "--chat") == 0
    reply = text_of(capsys).removeprefix("Hi\n\n")
    rendered = "<user>Hi<reply>"
    assert generate(*folders, "--prompt", rendered) == 0
    assert text_of(capsys).removeprefix(rendered).strip() == reply.strip()


def test_chat_needs_templates(folders, capsys):
    assert generate(*folders, "--prompt", "Hi", "--chat") == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-rlae: error: --chat: the tokenizer of member ")
    assert error.count("\n") == 1


BAD = {
    "weights of another number": (["a", "b", "--weights", "1,2,3"], "--weights: 3 given for 2 members"),
    "weights that are words": (["a", "b", "--weights", "much,little"], "'much' is not a finite number"),
    "negative weights": (["a", "b", "--weights=-1,2"], "at least 0"),
    "weights that are not finite": (["a", "b", "--weights", "nan,1"], "finite"),
    "weights that are all 0": (["a", "b", "--weights", "0,0"], "above 0"),
    "revisions of another number": (["a", "b", "--revisions", "main"], "--revisions: 1 given for 2 members"),
    "a span without tokens": (["a", "--span-length", "0"], "at least 1"),
    "no tokens": (["a", "--max-new-tokens", "-3"], "at least 1"),
    "temperature 0": (["a", "--sample", "--temperature", "0"], "above 0"),
    "top-p above 1": (["a", "--sample", "--top-p", "1.5"], "at most 1"),
    "temperature without sampling": (["a", "--temperature", "0.5"], "--sample"),
    "an unknown dtype": (["a", "--dtype", "float7"], "float7"),
    "a folder that is not there": (["./not/there"], "./not/there is not a folder"),
    "settings of a mixing that are no JSON": (["a", "b", "--mixing-kwargs", "alpha=1"], "is not JSON"),
    "settings of a mixing that are a list": (["a", "b", "--mixing-kwargs", "[1]"], "is not a JSON object"),
    "settings of no mixing": (["a", "b", "--mixing-kwargs", "{}"], "add --mixing"),
    "an unknown setting": (
        ["a", "b", "--mixing", "contrast", "--mixing-kwargs", '{"alhpa": 1}'],
        "did you mean 'alpha'",
    ),
    "a negative prompt that nobody reads": (["a", "b", "--negative-prompt", "no"], "add --mixing guidance"),
    "an unknown mixing": (["a", "b", "--mixing", "liner"], "did you mean 'linear'"),
    "an unknown device": (["a", "--device", "abacus"], "--device abacus"),
    "a device that computes nothing": (["a", "--device", "meta"], "--device meta"),
    "a member without a name": ([""], "'' is not a folder"),
    "a revision of a folder": (
        [str(Path(__file__).parent), "--revisions", "main"],
        "is a folder, which has no revisions",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named_before_members_are_loaded(capsys, monkeypatch, name):
    monkeypatch.setattr(Member, "load", lambda *args, **kwargs: pytest.fail("a member was loaded"))
    arguments, message = BAD[name]
    try:
        code: object = main(["generate", *arguments, "--prompt", "x"])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert "hf-rlae" in captured.err
    assert ": error: " in captured.err
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def empty_folder(tmp_path: Path) -> None:
    """A folder without a model."""


def without_weights(tmp_path: Path) -> None:
    pair("llama", 0, unigram())[0].config.save_pretrained(tmp_path)


def damaged_weights(tmp_path: Path) -> None:
    without_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights" * 10_000)


def without_tokenizer(tmp_path: Path) -> None:
    pair("llama", 0, unigram())[0].save_pretrained(tmp_path)


@pytest.mark.parametrize("make", [empty_folder, without_weights, damaged_weights, without_tokenizer])
def test_folders_that_hold_no_member(tmp_path, capsys, make):
    make(tmp_path)
    capsys.readouterr()  # saving shows a progress bar
    assert generate(str(tmp_path), "--prompt", PROMPT) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hf-rlae: error: member {tmp_path} cannot be loaded: ")
    assert "id of such a model on the Hub" in captured.err
    assert captured.err.count("\n") == 1


def test_an_unknown_hub_id(folders, capsys):
    assert generate(folders[0], "nobody/no-model", "--prompt", PROMPT) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hf-rlae: error: member nobody/no-model cannot be loaded: there is no such")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("member", "has_network", "is_offline"),
    [("no-model", False, True), ("no-model", True, False), (".", False, False)],
)
def test_the_hub_is_left_alone_without_a_network(monkeypatch, member, has_network, is_offline):
    def look_up(*args, **kwargs):
        if not has_network:
            raise socket.gaierror("no network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(shared_arguments, "getproxies", dict)
    monkeypatch.setattr(generation, "write_texts", lambda args: None)
    assert main(["generate", member, "--prompt", "x"]) == 0
    assert os.environ.get("HF_HUB_OFFLINE") == ("1" if is_offline else None)


def test_errors_of_the_package_have_no_traceback(folders, capsys):
    assert generate(*folders, "--prompt", "word " * 80) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hf-rlae: error: input_ids: the prompt has ")
    assert captured.err.count("\n") == 1


def test_revisions_and_dtype_reach_the_members(monkeypatch, capsys):
    seen = []

    def load(source, **options):
        seen.append((source, options["revision"], options["dtype"], options["device_map"]))
        if source == "b":
            raise MemberError("seen enough")

    monkeypatch.setattr(Member, "load", load)
    arguments = ["a", "b", "--prompt", "x", "--revisions", "v1,", "--dtype", "bfloat16"]
    assert main(["generate", *arguments]) == 2
    assert "seen enough" in capsys.readouterr().err
    assert seen == [("a", "v1", "bfloat16", None), ("b", None, "bfloat16", None)]


def interrupt(ensemble, inputs, args, streamer, cache=None):
    streamer.put(inputs["input_ids"])
    raise KeyboardInterrupt


def test_control_c_ends_the_line_and_returns_130(folders, capsys, monkeypatch):
    monkeypatch.setattr(generation, "_generate", interrupt)
    assert generate(*folders, "--prompt", PROMPT) == 130
    captured = capsys.readouterr()
    assert captured.out == PROMPT + "\n"
    assert captured.err == "hf-rlae: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["generate", "--help"], 0),
        (["train", "--help"], 0),
        (["train", "rlae", "--help"], 0),
        (["train", "--list"], 0),
        (["train", "rlae", "--config", "no_such_file"], 2),
        (["chat", "--help"], 0),
        (["serve", "--help"], 0),
        (["push", "--help"], 0),
        (["pull", "--help"], 0),
        (["tasks", "--help"], 0),
        (["policies", "--help"], 0),
        (["version", "--help"], 0),
        (["serve", "a", "b", "--continuous-batching"], 2),
        (["serve", "a", "--port", "70000"], 2),
        (["push", ".", "user/name"], 2),
        (["pull", "user/name", "."], 2),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1"], 2),
        (["generate", "./none", "--prompt", "x"], 2),
        ([], 2),
    ],
)
def test_help_and_bad_arguments_import_nothing_slow(arguments, code):
    script = (
        "import sys\n"
        "from hf_rlae.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "slow = {'torch', 'transformers', 'tokenizers', 'huggingface_hub', 'rich'} & set(sys.modules)\n"
        "print(f'{code} {sorted(slow)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_help_names_the_command_and_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "generate" in text_of(capsys)
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = text_of(capsys)
    for option in (
        "MEMBER",
        "--prompt",
        "--weights",
        "--span-length",
        "--mixing",
        "--mixing-kwargs",
        "--negative-prompt",
        "--grain",
        "--sample",
        "--chat",
        "--table",
    ):
        assert option in text
