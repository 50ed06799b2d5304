"""Files, folders and the Hub: what is found, and the errors for what is not."""

from __future__ import annotations

import csv
import json
import sys
import time

import datasets
import huggingface_hub
import pytest

from hf_rlae.errors import ConfigError
from hf_rlae.tasks import SplitError, TaskError, load_task, tasks

ROWS = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 6)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """A separate cache, which local files must leave empty."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    yield folder
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("test.jsonl", "test"),
        ("my_test_file.jsonl", "test"),
        ("gsm8k-train.jsonl", "train"),
        ("TRAIN.jsonl", "train"),
        ("training.jsonl", "train"),
        ("test-00000-of-00002.jsonl", "test"),
        ("rows.jsonl", "test"),
        ("rows.jsonl", "train"),
        ("latest.jsonl", "train"),
        ("train_and_test.jsonl", "test"),
        ("special.jsonl", "special"),
    ],
)
def test_names_of_files(file, split, tmp_path):
    """A file named after a split holds that split; any other file stands for the requested one."""
    path = write(tmp_path / file)
    assert len(load_task("gsm8k", split, path)) == 5
    assert len(load_task("gsm8k", split, tmp_path)) == 5


@pytest.mark.parametrize("file", ["test.jsonl", "my_test_file.jsonl", "testing.jsonl", "test-00000-of-00002.jsonl"])
def test_a_file_of_another_split(file, tmp_path):
    path = write(tmp_path / file)
    for source in (path, tmp_path):
        with pytest.raises(SplitError, match="test"):
            load_task("gsm8k", "train", source)


def test_dev_is_validation_unless_there_is_a_dev_split(tmp_path):
    row = {"goal": "G", "sol1": "x", "sol2": "y", "label": 0}
    assert len(load_task("piqa", "validation", write(tmp_path / "dev.jsonl", [row]))) == 1
    mmlu = write(tmp_path / "mmlu" / "dev.jsonl", [{"question": "Q", "choices": list("wxyz"), "answer": 0}])
    assert len(load_task("mmlu", "dev", mmlu)) == 1
    with pytest.raises(SplitError, match="dev"):
        load_task("mmlu", "validation", mmlu)


def test_folders(tmp_path):
    """Copies of a Hub repository: a folder or a file named after the config, a folder `data`, several shards."""
    write(tmp_path / "a" / "main" / "test-00000-of-00002.jsonl", ROWS[:2])
    write(tmp_path / "a" / "main" / "test-00001-of-00002.jsonl", ROWS[2:])
    assert load_task("gsm8k", "test", tmp_path / "a")["answer"][:] == ["2", "4", "6", "8", "10"]
    write(tmp_path / "b" / "data" / "test.jsonl")
    assert len(load_task("gsm8k", "test", tmp_path / "b")) == 5
    row = {"Question": "Q", "Correct Answer": "r", **{f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}}
    write(tmp_path / "c" / "gpqa_main.jsonl", [row])
    write(tmp_path / "c" / "gpqa_diamond.jsonl", [row, row])
    assert len(load_task("gpqa", "train", tmp_path / "c")) == 1
    assert len(load_task("gpqa", "train", tmp_path / "c", config="gpqa_diamond")) == 2
    write(tmp_path / "d" / "test.jsonl")
    write(tmp_path / "d" / "other_test.jsonl", ROWS[:1])
    assert len(load_task("gsm8k", "test", tmp_path / "d")) == 5
    (tmp_path / "d" / "test.jsonl").rename(tmp_path / "d" / "third_test.jsonl")
    with pytest.raises(TaskError, match=r"other_test\.jsonl, third_test\.jsonl"):
        load_task("gsm8k", "test", tmp_path / "d")
    (tmp_path / "e").mkdir()
    with pytest.raises(TaskError, match=r"train\.jsonl"):
        load_task("gsm8k", "test", tmp_path / "e")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("t.jsonl", '{"question": "Q", "answer": "1"}\n\n{"question": \n', r"line 3 is not JSON"),
        ("t.jsonl", '{"question": "Q", "answer": "1"}\n[1]\n', r"line 2 is not an object"),
        ("t.jsonl", "[" * 100_000, r"line 1 is not JSON"),
        ("t.jsonl", '{"question": "Q", "answer": ' + "1" * 10_000 + "}", r"line 1 is not JSON"),
        ("t.json", '{"data": [\n{"question": "Q"}]}', r"line 1 is not JSON .* a list of objects"),
        ("t.json", '[{"question": "Q", "answer": "1"}, 3]', r"row 2 is not an object"),
        ("t.json", "[1, 2", r"is not JSON"),
        ("t.csv", "question,answer\nQ,1\nQ\n", r"line 3 has 1 values"),
        ("t.csv", 'question,answer\n"Q,1\n', r"is not CSV"),
        ("t.csv", "answer,answer\n1,1\n", r"occurs twice"),
        ("t.csv", 'question,answer\n"a\nb",1\nQ,x\n', r"line 4, column 'answer'"),
        ("t.parquet", "no Parquet", r"is not Parquet"),
        ("t.txt", "Q", r"ends with \.jsonl, .*\.parquet"),
        ("t.jsonl", '{"question": "Q", "answer": "1"}\n{"question": "Q"}\n', r"line 2 lacks the column 'answer'"),
    ],
)
def test_files_that_are_refused(file, text, message, tmp_path):
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(TaskError, match=message) as raised:
        load_task("gsm8k", "test", path)
    assert str(path) in str(raised.value)


def test_bytes(tmp_path):
    """A byte-order mark is not part of the text, a Unicode separator does not end a line; only UTF-8 is accepted."""
    line = json.dumps({"question": "1\u2028+ 1?", "answer": "2"}, ensure_ascii=False)
    for file, text in (("a.jsonl", line), ("a.json", f"[{line}]"), ("a.csv", 'question,answer\n"1\u2028+ 1?",2\n')):
        (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load_task("gsm8k", "test", tmp_path / file)[0]["question"] == "1\u2028+ 1?"
        (tmp_path / file).write_bytes(text.encode("utf-16"))
        with pytest.raises(TaskError, match="UTF-8"):
            load_task("gsm8k", "test", tmp_path / file)


def test_long_fields_of_csv(tmp_path):
    """Fields longer than the default limit of the `csv` module, which is restored."""
    before = csv.field_size_limit(1000)
    (tmp_path / "a.csv").write_text(f"question,answer\n{'x' * 200_000},2\n")
    assert len(load_task("gsm8k", "test", tmp_path / "a.csv")[0]["question"]) == 200_000
    assert csv.field_size_limit(before) == 1000


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in (tmp_path / "none", "/none", "none.jsonl", "a/b/c", ""):
        with pytest.raises(TaskError, match="no such file or folder"):
            load_task("gsm8k", "test", source)
    with pytest.raises(TaskError, match="pass source="):
        load_task("svamp", "test")
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        load_task("gsm8", "test")


class Answers:
    """A session of the Hub that always answers."""

    def head(self, *args, **kwargs):
        return None


@pytest.fixture
def hub(monkeypatch):
    """Replaces the Hub by a result or an error of `datasets.load_dataset`."""
    calls = []

    def put(result):
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_session", Answers)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return put


def test_the_hub(hub, tmp_path):
    """Id, config, split and the given revision are passed to `datasets`; columns that are not read do not matter."""
    calls = hub(datasets.Dataset.from_list([{**row, "more": 1} for row in ROWS]))
    drawn = load_task("gsm8k", "test", limit=3)
    assert drawn.to_list() == load_task("gsm8k", "test", write(tmp_path / "test.jsonl"), limit=3).to_list()
    load_task("gsm8k", "test", config="socratic", revision="refs/pr/1")
    load_task("gsm8k", "test", "somebody/else")
    assert calls == [
        (("openai/gsm8k", "main"), {"split": "test", "revision": None}),
        (("openai/gsm8k", "socratic"), {"split": "test", "revision": "refs/pr/1"}),
        (("somebody/else", None), {"split": "test", "revision": None}),
    ]


def test_bad_rows_of_the_hub(hub):
    hub(datasets.Dataset.from_list([*ROWS, {"question": "Q", "answer": "none"}]))
    with pytest.raises(TaskError, match=r"openai/gsm8k \(main\), row 6, column 'answer'"):
        load_task("gsm8k", "test")


def test_shots_of_the_hub(hub):
    calls = hub(datasets.Dataset.from_list(ROWS))
    row = load_task("gsm8k", "test", limit=1, num_few_shot=2)[0]
    assert len(row["prompt"]) == 5
    assert [kwargs["split"] for _, kwargs in calls] == ["test", "train"]


def test_gated_data(hub):
    """The message says how to get access and does not quote the original one, which might contain a row."""
    hub(datasets.exceptions.DatasetNotFoundError("Dataset is a gated dataset. SECRET"))
    with pytest.raises(TaskError, match="hf auth login") as raised:
        load_task("gpqa", "train")
    assert "SECRET" not in str(raised.value)
    assert "Idavidrein/gpqa" in str(raised.value)
    with pytest.raises(TaskError, match="hf auth login"):
        load_task("gsm8k", "test")


def test_other_failures_of_the_hub(hub):
    hub(ValueError("Unknown split 'tset'. Should be one of ['train', 'test']."))
    with pytest.raises(TaskError, match=r"Should be one of .*source="):
        load_task("gsm8k", "tset")


def test_no_network(monkeypatch):
    """The error comes at once and says what to do."""

    class Silent:
        def head(self, *args, **kwargs):
            assert 0 < kwargs["timeout"] <= 5
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Silent)
    start = time.perf_counter()
    with pytest.raises(TaskError, match=r"cannot be reached .*source="):
        load_task("gsm8k", "test")
    with pytest.raises(TaskError, match=r"no file or folder here"):
        load_task("gsm8k", "test", "data/gsm8k")
    assert time.perf_counter() - start < 5


def test_offline_without_a_cache(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="source="):
        load_task("gsm8k", "test")


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="hf_rlae"):
        load_task("gsm8k", "test", "built_in")


def test_one_file_gives_shots_when_asked(tmp_path):
    """Two questions in one file: each is the other's only shot."""
    path = write(tmp_path / "rows.jsonl", ROWS[:2])
    rows = load_task("gsm8k", "test", path, num_few_shot=1, few_shot_split="test")
    assert ["1 + 1?" in row["prompt"][0]["content"] for row in rows] == [False, True]
    with pytest.raises(TaskError, match=r"num_few_shot=2, but .* has 1 other questions"):
        load_task("gsm8k", "test", path, num_few_shot=2, few_shot_split="test")
    with pytest.raises(SplitError, match="trian"):
        load_task("gsm8k", "test", path, num_few_shot=1, few_shot_split="trian")
    named = write(tmp_path / "test.jsonl")
    with pytest.raises(SplitError, match="train"):
        load_task("gsm8k", "test", named, num_few_shot=1, few_shot_split="train")
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(TaskError, match="line 1 is not JSON"):
        load_task("gsm8k", "test", tmp_path, num_few_shot=1)


def test_the_same_question_in_another_split_is_no_shot(tmp_path):
    write(tmp_path / "train.jsonl", [{"question": "ONE  + one?", "answer": "2"}, *ROWS[1:3]])
    write(tmp_path / "test.jsonl", [{"question": "One + one?", "answer": "2"}])
    for seed in range(8):
        rows = load_task("gsm8k", "test", tmp_path, num_few_shot=2, seed=seed)
        assert not any("ONE" in message["content"] for message in rows[0]["prompt"])


def test_own_tasks(tmp_path):
    """A decorated function is a task; its declarations are checked."""
    from hf_rlae.tasks import Example, task

    try:

        @task("test_colours", description="Colours.", splits=("test",), fields={"question": "q", "answer": "a"})
        def colours(row):
            return Example(row.text("question"), row.text("answer"), row.text("answer"))

        path = write(tmp_path / "rows.jsonl", [{"q": "Colour of snow?", "a": "white"}])
        assert load_task("test_colours", "test", path, prompt_format="standard").to_list() == [
            {"prompt": "Question: Colour of snow?\nAnswer:", "question": "Colour of snow?", "answer": "white"}
        ]
        with pytest.raises(ConfigError, match="registered twice"):
            task("gsm8k", description="D.", splits=("test",), fields={})(colours)
        with pytest.raises(ConfigError, match="template"):
            task("test_other", description="D.", splits=("test",), fields={}, text="none")(colours)

        @task("test_more", description="D.", splits=("test",), fields={"question": "q"})
        def more(row):
            return Example(row.text("question"), "", "", columns={"hint": "none"})

        with pytest.raises(ConfigError, match="hint"):
            load_task("test_more", "test", path)
    finally:
        for name in ("test_colours", "test_more"):
            tasks._entries.pop(name, None)
