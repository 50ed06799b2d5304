"""Guarantees of every registered task."""

from __future__ import annotations

import json
import logging
import socket

import pyarrow as pa
import pytest
from pyarrow import parquet

from hf_rlae.tasks import SplitError, TaskError, get_task, list_tasks, load_task, tasks
from hf_rlae.tasks.definition import BUILT_IN, UNKNOWN_LICENCE

NAMES = list(tasks)
READ = [name for name in NAMES if get_task(name).read is not None]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails a test that opens a connection."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples(name):
    """The rows that come with a task, all of one group."""
    group = get_task(name).few_shot_group
    return [{**row, group: "anatomy"} if group else dict(row) for row in get_task(name).examples]


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with one JSONL file per split, each with the examples of a task."""

    def make(name):
        for split in get_task(name).splits:
            write_lines(tmp_path / f"{split}.jsonl", examples(name))
        return tmp_path

    return make


def loaded(name, folder, **options):
    """The first split of any task, with all of its rows or ten generated ones."""
    task = get_task(name)
    if task.generate is not None:
        return load_task(name, task.splits[0], **{"limit": 10, **options})
    return load_task(name, task.splits[0], folder(name), **options)


def test_the_tasks_that_are_there():
    assert NAMES == [
        "arc_challenge",
        "arithmetic_chain",
        "gpqa",
        "gsm8k",
        "humaneval",
        "imdb",
        "mbpp",
        "mmlu",
        "piqa",
        "story_sentiment",
        "svamp",
        "triviaqa",
    ]
    listed = [task.name for task in list_tasks()]
    assert [name for name in listed if name in NAMES] == NAMES  # a page that ran before may have added one


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_what_it_is(name):
    task = get_task(name)
    assert task.name == name
    assert task.description.endswith(".")
    assert task.splits
    assert task.revision is None
    assert (task.reward is None) == bool(task.reward_note)
    assert task.licence != UNKNOWN_LICENCE or task.hub_id is not None
    assert (task.read is None) != (task.generate is None)
    assert task.num_few_shot == 0 or task.generate is not None or len(task.examples) >= task.num_few_shot
    assert task.few_shot_split in (*task.splits, BUILT_IN)


@pytest.mark.parametrize("name", NAMES)
def test_columns_and_prompts(name, folder):
    """The columns are those that the task declares; both prompt formats contain the question once."""
    task = get_task(name)
    chat = loaded(name, folder, prompt_format="conversational")
    plain = loaded(name, folder, prompt_format="standard")
    assert chat.column_names == plain.column_names == list(task.column_names)
    assert len(chat) == len(plain) == (10 if task.generate else len(task.examples))
    for messages, text in zip(chat, plain, strict=True):
        (message,) = messages["prompt"]
        assert message["role"] == "user"
        for prompt in (message["content"], text["prompt"]):
            assert prompt.count(text["question"]) == 1
        assert text["prompt"] == text["prompt"].rstrip()
        assert isinstance(text["answer"], str)
        if name in ("imdb", "story_sentiment"):
            assert text["answer"] == ""
        else:
            assert text["answer"]
        if "choices" in text:
            assert text["answer"] in "ABCDE"[: len(text["choices"])]
            assert all(choice in text["prompt"] for choice in text["choices"])
    by_default = loaded(name, folder)[0]["prompt"]
    assert isinstance(by_default, list) == (task.prompt_format == "conversational")


@pytest.mark.parametrize("name", NAMES)
def test_templates(name, folder):
    """A user's template replaces the task's own, including other braces."""
    text = loaded(name, folder, prompt_format="standard", template="{x} {question} {y}")[0]
    assert text["prompt"].startswith("{x} ")
    assert text["prompt"].endswith(" {y}")
    assert text["question"] in text["prompt"]


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_the_seed_alone(name, folder):
    """Equal seeds give equal rows, another seed another order, and a smaller limit a prefix of a larger one."""
    three = loaded(name, folder, limit=3, seed=1, num_few_shot=1).to_list()
    assert three == loaded(name, folder, limit=3, seed=1, num_few_shot=1).to_list()
    two = loaded(name, folder, limit=2, seed=1, num_few_shot=1).to_list()
    assert [row["question"] for row in two] == [row["question"] for row in three[:2]]
    orders = {tuple(loaded(name, folder, limit=3, seed=seed)["question"]) for seed in range(6)}
    assert len(orders) > 1


@pytest.mark.parametrize("name", READ)
def test_all_rows_come_in_order(name, folder):
    """Without a limit nothing is shuffled; with a limit that is too large nothing is lost."""
    rows = loaded(name, folder)["question"]
    fields = get_task(name).fields
    column = fields["question" if "question" in fields else "text"][0]
    written = [example[column] for example in get_task(name).examples]
    assert all(row.endswith(own) or own.startswith(row) for row, own in zip(rows, written, strict=True))
    assert sorted(loaded(name, folder, limit=10**6)["question"]) == sorted(rows)


@pytest.mark.parametrize("name", READ)
def test_every_kind_of_file_gives_the_same(name, folder, tmp_path):
    """JSON lines, a JSON list, and Parquet, as a folder or as a file."""
    rows = examples(name)
    split = get_task(name).splits[0]
    expected = loaded(name, folder).to_list()
    others = tmp_path / "others"
    others.mkdir()
    (others / "rows.json").write_text(json.dumps(rows, indent=1))
    parquet.write_table(pa.Table.from_pylist(rows), others / f"{split}-00000-of-00001.parquet")
    write_lines(others / "lines.json", rows)
    for path in (tmp_path / f"{split}.jsonl", *others.iterdir()):
        if name == "story_sentiment" and path.stem in ("rows", "lines"):
            continue  # such a file holds all splits of this task
        assert load_task(name, split, path).to_list() == expected, path
    (others / "rows.json").unlink()
    (others / "lines.json").unlink()
    assert load_task(name, split, str(others)).to_list() == expected


@pytest.mark.parametrize("name", NAMES)
def test_unknown_splits(name, folder):
    """The message names the existing splits, whatever the source."""
    task = get_task(name)
    sources = [None] if task.generate else [folder(name), BUILT_IN]
    for source in sources:
        with pytest.raises(SplitError, match=task.splits[0]):
            load_task(name, "tets", source)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt_format", ["conversational", "standard"])
def test_shots(name, folder, prompt_format):
    """A prompt with shots ends like the one without and holds the right number of other questions with replies."""
    plain = loaded(name, folder, prompt_format=prompt_format, seed=3).to_list()
    rows = loaded(name, folder, prompt_format=prompt_format, num_few_shot=2, seed=3).to_list()
    others = loaded(name, folder, prompt_format=prompt_format, num_few_shot=2, seed=4).to_list()
    again = loaded(name, folder, prompt_format=prompt_format, num_few_shot=2, seed=3).to_list()
    assert rows == again
    assert get_task(name).generate or rows != others
    for row, bare in zip(rows, plain, strict=True):
        if prompt_format == "standard":
            assert row["prompt"].count("\n\n") >= 2
            assert row["prompt"].endswith(bare["prompt"])
            assert row["prompt"].count(row["question"]) == 1
            continue
        assert [message["role"] for message in row["prompt"]] == ["user", "assistant"] * 2 + ["user"]
        assert row["prompt"][-1:] == bare["prompt"][-1:]
        assert not any(row["question"] in message["content"] for message in row["prompt"][:-1])
        assert row["prompt"][0] != row["prompt"][2]


@pytest.mark.parametrize("name", NAMES)
def test_customary_shots(name, tmp_path):
    """`None` is the task's own number; if the source lacks the split of the shots, the task's examples are used."""
    task = get_task(name)
    source = None
    if task.read is not None:
        column = next(iter(task.fields.values()))[0]
        rows = [{**row, column: f"Now: {row[column]}"} for row in task.examples]
        source = write_lines(tmp_path / "rows.jsonl", rows)
    rows = load_task(name, task.splits[0], source, 3, num_few_shot=None, prompt_format="conversational")
    assert {len(row["prompt"]) for row in rows} == {2 * task.num_few_shot + 1}
    if source is not None and task.num_few_shot:
        assert not any("Now: " in message["content"] for row in rows for message in row["prompt"][:-1])


@pytest.mark.parametrize("name", READ)
def test_missing_columns(name, tmp_path):
    """A file that lacks a required column is refused; the message names file, field and columns."""
    task = get_task(name)
    split = task.splits[0]
    for field in task.fields:
        gone = task.fields[field][0]
        gone = gone if isinstance(gone, str) else gone[-1]
        path = write_lines(
            tmp_path / f"{split}.jsonl", [{k: v for k, v in row.items() if k != gone} for row in task.examples]
        )
        if field in task.optional_fields:
            assert len(load_task(name, split, path)) == len(task.examples)
            continue
        with pytest.raises(TaskError) as raised:
            load_task(name, split, path)
        assert str(path) in str(raised.value)
        assert repr(field) in str(raised.value)
        assert repr(gone) in str(raised.value)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("bad", [None, "", "  ", 3.5, [], {}, float("nan"), "\ud800"], ids=repr)
def test_bad_values(name, bad, tmp_path):
    """One bad value prevents loading; the message names file, line and column, and for GPQA no value."""
    task = get_task(name)
    split = task.splits[0]
    for field in task.fields:
        column = task.fields[field][0]
        column = column if isinstance(column, str) else column[-1]
        if field in ("answer", "equation") and name in ("gsm8k", "svamp") and bad == 3.5:
            continue  # a number is an answer
        if field in task.optional_fields and (bad in (None, "") or field == "task_id"):
            continue  # may be missing; any other number says nothing
        if field in ("aliases", "imports") and bad == []:
            continue
        rows = [dict(row) for row in task.examples]
        rows[2][column] = bad
        path = write_lines(tmp_path / f"{split}.jsonl", rows)
        with pytest.raises(TaskError) as raised:
            load_task(name, split, path)
        message = str(raised.value)
        assert f"{path}, line 3" in message
        assert repr(column) in message
        if task.is_gated:
            assert not any(str(value) in message for value in task.examples[2].values())


@pytest.mark.parametrize("name", READ)
def test_empty_files(name, tmp_path):
    split = get_task(name).splits[0]
    for ending, text in ((".jsonl", ""), (".json", "[]"), (".csv", "question,answer\n"), (".json", "")):
        path = tmp_path / f"{split}{ending}"
        path.write_text(text)
        with pytest.raises(TaskError, match="empty"):
            load_task(name, split, path)


def test_gated_values_are_in_no_log(tmp_path, caplog):
    """Not even at the level DEBUG."""
    caplog.set_level(logging.DEBUG)
    task = get_task("gpqa")
    load_task("gpqa", "train", write_lines(tmp_path / "train.jsonl", task.examples), num_few_shot=2)
    assert not any(str(value) in caplog.text for row in task.examples for value in row.values() if len(str(value)) > 2)
