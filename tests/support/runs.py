"""Small models, rows of every dataset, and command lines that make the ready files of `hf-rlae train` small."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from transformers import BertConfig, BertForSequenceClassification

from hf_rlae.configs import FOLDER
from tests.support.models import pair
from tests.support.policies import encoder
from tests.support.rlae import CHAT_TEMPLATES
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

CHOICES = ["red", "blue", "green", "grey"]
ROWS = {
    "gsm8k": lambda at: {"question": f"What is {at} + 1?", "answer": f"{at} + 1 = {at + 1}\n#### {at + 1}"},
    "mmlu": lambda at: {"question": f"Colour {at}?", "subject": "art", "choices": CHOICES, "answer": at % 4},
    "arc_challenge": lambda at: {
        "id": str(at),
        "question": f"Colour {at}?",
        "choices": {"text": CHOICES, "label": list("ABCD")},
        "answerKey": "ABCD"[at % 4],
    },
    "triviaqa": lambda at: {
        "question": f"Which number is {at}?",
        "answer": {"value": str(at), "aliases": [f"No. {at}"], "normalized_aliases": [f"no {at}"]},
    },
    "piqa": lambda at: {"goal": f"Paint wall {at}.", "sol1": "With a brush.", "sol2": "With soup.", "label": 0},
    "gpqa": lambda at: {
        "Question": f"Unit {at}?",
        "Correct Answer": "metre",
        **{f"Incorrect Answer {wrong}": f"unit {at}-{wrong}" for wrong in (1, 2, 3)},
    },
    "mbpp": lambda at: {
        "text": f"Write a function that adds {at}.",
        "code": f"def add(x):\n    return x + {at}",
        "test_list": [f"assert add(1) == {at + 1}"],
    },
    "imdb": lambda at: {"text": f"Film {at} was a film that one can watch on a rainy day, or not.", "label": at % 2},
}
"""A row of each dataset, in its schema on the Hub."""

SMALL = {
    "max_steps": 2,
    "max_completion_length": 4,
    "num_generations": 2,
    "num_iterations": 1,
    "generation_batch_size": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 2,
    "eval_size": 2,
    "train_size": 4,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dtype": "float32",
}


def save_models(root: Path) -> dict[str, Path]:
    """Two members with different tokenizers and chat templates, an encoder, and a classifier."""
    for index, tokenizer in enumerate((byte_level_bpe(), sentencepiece_bpe())):
        tokenizer.chat_template = CHAT_TEMPLATES[index]
        for part in pair("llama", index, tokenizer, max_position_embeddings=512):
            part.save_pretrained(root / f"member{index}")
    for part in encoder():
        part.save_pretrained(root / "encoder")
    tokenizer = byte_level_bpe()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    for part in (BertForSequenceClassification(config), tokenizer):
        part.save_pretrained(root / "classifier")
    return {name: root / name for name in ("member0", "member1", "encoder", "classifier")}


def data(folder: Path, config: str) -> Path:
    """Files with rows for every split that a ready file names."""
    values = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())
    for split in {values["train_split"], values.get("eval_split", values["train_split"])}:
        lines = (json.dumps(ROWS[values["task"]](at)) for at in range(8))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def arguments(config: str, folders: dict[str, Path], folder: Path, **others: object) -> list[str]:
    """The command line that makes a ready file small."""
    kind, _, task = config.partition("_")
    small: dict[str, object] = {**SMALL, "task_source": data(folder, config), "output_dir": folder / "out", **others}
    given = ["train", kind, "--config", config]
    if kind == "rlae":
        members = [folders["member0"], folders["member1"], folders["member0"]]
        given += ["--members", *map(str, members[: 3 if "three" in task else 2])]
        small |= {"encoder": folders["encoder"], "max_text_tokens": 16}
    else:
        small |= {"model_name_or_path": folders["member0"], "lora_r": 2, "kl_horizon": 1000}
        small |= {"rewards": json.dumps({"name": str(folders["classifier"]), "label": 1})} if task == "imdb" else {}
        if task == "imdb":
            del small["eval_size"]
    for name, value in small.items():
        given += [f"--{name}", str(value)]
    return given
