"""The rows of each task."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.tasks import Task, TaskError, load_task
from hf_rlae.tasks.chains import SPLITS
from hf_rlae.tasks.choices import LETTERS
from hf_rlae.tasks.quantities import plain_number


def load(name, rows, folder, split="test", **options):
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(name, split, path, **options).to_list()


def arc(labels, key, texts=("w", "x", "y", "z", "v")):
    texts = list(texts[: len(labels)])
    return {"id": "1", "question": "Q?", "choices": {"text": texts, "label": list(labels)}, "answerKey": key}


@pytest.mark.parametrize(
    ("labels", "key", "letter"),
    [
        ("ABCD", "B", "B"),
        ("ABC", "C", "C"),
        ("ABCDE", "E", "E"),
        ("1234", "1", "A"),
        ("1234", "4", "D"),
        ("ABCD", "4", "D"),
        ("1234", "C", "C"),
        ("ABCD", "d", "D"),
        ("ABCD", " B ", "B"),
        ("2341", "1", "D"),
    ],
)
def test_arc_answers(labels, key, letter, tmp_path):
    """A label of the options comes first, then numbers from 1 and letters."""
    (row,) = load("arc_challenge", [arc(labels, key)], tmp_path)
    assert row["answer"] == letter
    assert row["choices"] == ["w", "x", "y", "z", "v"][: len(labels)]


@pytest.mark.parametrize(
    "row",
    [
        arc("ABC", "D"),
        arc("ABCD", "0"),
        arc("ABCD", "5"),
        arc("ABCD", "AB"),
        arc("AACD", "A"),
        arc("ABCD", "--1"),
        arc("ABCD", "ﬆ"),
        arc("A", "A"),
        arc("ABCD", True),
        arc("ABCD", "A", ("w", "", "y", "z")),
        {**arc("ABCD", "A"), "choices": {"text": ["w", "x"], "label": ["A"]}},
        {**arc("ABCD", "A"), "choices": {"text": ["w", "x"], "label": None}},
        {**arc("ABCD", "A"), "choices": {"text": "wx", "label": ["A", "B"]}},
        {**arc("ABCD", "A"), "choices": {"options": ["w", "x"]}},
        {**arc("ABCD", "A"), "choices": "w or x"},
        {**arc("ABCD", "A"), "choices": ["x"] * 27},
    ],
)
def test_arc_rows_that_are_refused(row, tmp_path):
    with pytest.raises(TaskError, match=r"test\.jsonl, line 1, column '(choices|answerKey)'"):
        load("arc_challenge", [row], tmp_path)


def test_arc_in_columns(tmp_path, caplog):
    """Options in columns: empty ones at the end are ignored; rows without any are kept, or dropped on request."""
    rows = [
        {"question": "Q1?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "3"},
        {"question": "Q2?", "A": "w", "B": "x", "C": "y", "D": "", "answer": "A"},
        {"question": "Q3?", "A": "", "B": "", "C": "", "D": "", "answer": "2"},
    ]
    loaded = load("arc_challenge", rows, tmp_path)
    assert [row["answer"] for row in loaded] == ["C", "A", "B"]
    assert [len(row["choices"]) for row in loaded] == [4, 3, 4]
    assert "1 of 3 rows" in caplog.text
    assert [row["question"] for row in load("arc_challenge", rows, tmp_path, blank_options="drop")] == ["Q1?", "Q2?"]
    shots = load("arc_challenge", rows, tmp_path, num_few_shot=1, few_shot_split="test")
    assert not any("Q3?" in row["prompt"][0]["content"] for row in shots)
    with pytest.raises(ConfigError, match="did you mean 'drop'"):
        load("arc_challenge", rows, tmp_path, blank_options="dropp")
    with pytest.raises(TaskError, match="line 2, columns 'A', 'B', 'C', 'D'"):
        load("arc_challenge", [rows[0], {**rows[1], "A": ""}], tmp_path)


def test_user_columns(tmp_path):
    """Any column can stand for a field, and several for a list; field names are checked."""
    rows = [{"stem": "Q?", "one": "w", "two": "x", "three": "y", "key": "B"}]
    columns = {"question": "stem", "choices": ["one", "two", "three"], "answer": "key"}
    (row,) = load("arc_challenge", rows, tmp_path, columns=columns)
    assert (row["question"], row["choices"], row["answer"]) == ("Q?", ["w", "x", "y"], "B")
    with pytest.raises(TaskError, match="no column for 'question': expected 'steam', found 'stem', 'one'"):
        load("arc_challenge", rows, tmp_path, columns={**columns, "question": "steam"})
    with pytest.raises(ConfigError, match="did you mean 'question'"):
        load("arc_challenge", rows, tmp_path, columns={"questions": "stem"})


@pytest.mark.parametrize(("answer", "letter"), [(0, "A"), (3, "D"), ("2", "C"), ("B", "B"), (1.0, "B")])
def test_mmlu_answers(answer, letter, tmp_path):
    """Numbers count from 0; options may be columns, or JSON in a CSV file; the subject may be missing."""
    row = {"question": "Q?", "subject": "anatomy", "choices": list("wxyz"), "answer": answer}
    apart = {"question": "Q?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": answer}
    (loaded,) = load("mmlu", [row], tmp_path)
    assert (loaded["answer"], loaded["subject"]) == (letter, "anatomy")
    (loaded,) = load("mmlu", [apart], tmp_path)
    assert (loaded["answer"], loaded["subject"], loaded["choices"]) == (letter, "", list("wxyz"))
    (tmp_path / "dev.csv").write_text(f'question,choices,answer\n"Q,\nq?","[""w"", ""x"", ""y"", ""z""]",{answer}\n')
    (loaded,) = load_task("mmlu", "dev", tmp_path / "dev.csv").to_list()
    assert (loaded["question"], loaded["answer"], loaded["choices"]) == ("Q,\nq?", letter, list("wxyz"))


def test_mmlu_shots_are_of_the_same_subject(tmp_path):
    """Every shot has the subject of the question, and too few shots are an error."""
    rows = [
        {"question": f"{subject} {i}?", "subject": subject, "choices": list("wxyz"), "answer": i % 4}
        for i in range(4)
        for subject in ("anatomy", "law")
    ]
    for split in ("dev", "test"):
        extra = [] if split == "dev" else [{**rows[0], "question": "anatomy 9?"}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + extra))
    loaded = load_task("mmlu", "test", tmp_path, num_few_shot=3)
    for row in loaded:
        asked = [message["content"].split(" ")[0] for message in row["prompt"][::2]]
        assert asked == [row["subject"]] * 4
    assert loaded[0]["prompt"][0]["content"] != loaded[1]["prompt"][0]["content"]
    with pytest.raises(TaskError, match=r"3 other questions with the subject"):
        load_task("mmlu", "test", tmp_path, num_few_shot=4)


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 5))
def test_gpqa_options(question, seed):
    """The letter is that of the right option, and the order depends only on question and seed."""
    from hf_rlae.tasks.gpqa import gpqa
    from hf_rlae.tasks.task_row import Binding, TaskRow

    values = {"q": question, "c": "right", "i": ["w", "x", "y"]}
    binding = Binding({"question": "q", "correct": "c", "incorrect": "i"}, seed=seed)
    try:
        question.encode()
    except UnicodeEncodeError:
        return
    example = gpqa(TaskRow(values, "here", binding))
    choices = example.columns["choices"]
    assert choices[LETTERS.index(example.answer)] == "right"
    assert sorted(choices) == ["right", "w", "x", "y"]
    assert example == gpqa(TaskRow(values, "elsewhere", binding))


def test_gpqa_letters_are_spread(tmp_path):
    """All letters are right about equally often, and a limit does not change a row's options."""
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    rows = [{"Question": f"Q{i}?", "Correct Answer": "right", **wrong} for i in range(400)]
    loaded = load("gpqa", rows, tmp_path, "train")
    counts = [sum(row["answer"] == letter for row in loaded) for letter in "ABCD"]
    assert min(counts) > 70
    by_question = {row["question"]: row["choices"] for row in loaded}
    assert all(row["choices"] == by_question[row["question"]] for row in load("gpqa", rows, tmp_path, "train", limit=9))
    others = load("gpqa", rows, tmp_path, "train", seed=1)
    assert sum(row["choices"] != by_question[row["question"]] for row in others) > 200


@pytest.mark.parametrize("column", ["Question", "Correct Answer", "Incorrect Answer 2"])
@pytest.mark.parametrize("bad", [["SECRET"], {"SECRET": 1}, "SECRET\ud800"])
def test_gated_values_are_in_no_message(column, bad, tmp_path):
    """Messages about a row of GPQA do not quote it; other messages do."""
    wrong = {f"Incorrect Answer {n}": f"SECRET {n}" for n in (1, 2, 3)}
    row = {"Question": "SECRET?", "Correct Answer": "SECRET", **wrong}
    with pytest.raises(TaskError, match=f"line 1, columns?.*{column}") as raised:
        load("gpqa", [{**row, column: bad}], tmp_path, "train")
    assert "SECRET" not in str(raised.value)
    with pytest.raises(TaskError, match="SECRET"):
        load("gsm8k", [{"question": ["SECRET"], "answer": "1"}], tmp_path)


def test_piqa(tmp_path):
    rows = [{"goal": "G.", "sol1": "x", "sol2": "y", "label": label} for label in (0, 1, "1")]
    assert [row["answer"] for row in load("piqa", rows, tmp_path)] == ["A", "B", "B"]
    with pytest.raises(TaskError, match=r"line 1, column 'label'.*another split"):
        load("piqa", [{**rows[0], "label": -1}], tmp_path)


def test_triviaqa(tmp_path):
    """The aliases begin with the answer and contain no duplicates."""
    full = {"question": "Q?", "answer": {"value": "X", "aliases": ["X", "Y"], "normalized_aliases": ["x", "Y"]}}
    plain = {"question": "[Q]?", "answer": "X", "aliases": ["Y"]}
    bare = {"question": "Q?", "answer": "[X"}
    loaded = load("triviaqa", [full, plain, bare], tmp_path)
    assert [row["answer"] for row in loaded] == ["X", "X", "[X"]
    assert [row["aliases"] for row in loaded] == [["X", "Y", "x"], ["X", "Y"], ["[X"]]
    for answer in ({"value": "<unk>", "aliases": []}, {"value": "X", "aliases": "Y"}, {"aliases": ["Y"]}, ["X"]):
        with pytest.raises(TaskError, match="line 1, column 'answer'"):
            load("triviaqa", [{"question": "Q?", "answer": answer}], tmp_path)


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        ("Steps.\n#### 1,080", "1080"),
        ("#### $5", "5"),
        ("#### -3", "-3"),
        ("####0.50", "0.50"),
        ("12", "12"),
        (12, "12"),
        (12.0, "12"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        ("+4.", "4"),
        ("a #### 1 #### 2", "2"),
    ],
)
def test_numbers(raw, number, tmp_path):
    (row,) = load("gsm8k", [{"question": "Q?", "answer": raw}], tmp_path)
    assert row["answer"] == number
    assert row["solution"].endswith(f"#### {number}")


@pytest.mark.parametrize("raw", ["Steps.", "#### many", "#### 1 or 2", "#### 1,23", "####", True, "#### ²", "1/2", [3]])
def test_no_numbers(raw, tmp_path):
    with pytest.raises(TaskError, match="line 1, column 'answer'"):
        load("gsm8k", [{"question": "Q?", "answer": raw}], tmp_path)


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators(number):
    assert plain_number(f"{number:,}") == str(number)


def test_annotations_of_gsm8k(tmp_path):
    (row,) = load("gsm8k", [{"question": "Q?", "answer": "It is 2 + 3 = <<2+3=5>>5.\n#### 5"}], tmp_path)
    assert row["solution"] == "It is 2 + 3 = 5.\n#### 5"


def test_svamp(tmp_path):
    """Body and question become one text; the equation becomes the solution."""
    row = {"Body": "He has 3 pens. If he buys 2", "Question": "How many?", "Equation": "( 3.0 + 2.0 )", "Answer": 5.0}
    other = {"question_concat": "He has 3. How many?", "Answer": "3"}
    (loaded,) = load("svamp", [row], tmp_path)
    assert loaded["question"] == "He has 3 pens. If he buys 2, How many?"
    assert (loaded["answer"], loaded["solution"]) == ("5", "( 3 + 2 ) = 5\n#### 5")
    (loaded,) = load("svamp", [{**row, "Body": "He has 3."}], tmp_path)
    assert loaded["question"] == "He has 3. How many?"
    (loaded,) = load("svamp", [other], tmp_path)
    assert (loaded["question"], loaded["solution"]) == ("He has 3. How many?", "#### 3")


def test_mbpp(tmp_path):
    """Both schemas; one numbered file holds four splits; indentation is kept."""
    code = "    pass\n"
    rows = [{"text": f"T{i}", "code": code, "test_list": ["assert f()"], "task_id": i} for i in (10, 11, 510, 511, 601)]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = {split: load_task("mbpp", split, path)["question"] for split in ("prompt", "test", "validation", "train")}
    assert {split: list(texts) for split, texts in numbers.items()} == {
        "prompt": ["T10"],
        "test": ["T11", "T510"],
        "validation": ["T511"],
        "train": ["T601"],
    }
    assert load_task("mbpp", "train", path)[0]["answer"] == "    pass"
    (row,) = load("mbpp", [{"prompt": "P", "code": code, "test": ["assert f()"], "task_id": 11}], tmp_path)
    assert (row["question"], row["test_list"], row["test_setup_code"]) == ("P", ["assert f()"], "")
    assert "assert f()" in row["prompt"][0]["content"]
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(TaskError, match=r"none of its 1 rows gives a question of split 'test'"):
        load_task("mbpp", "test", path)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_chains(seed, num_steps):
    """For any number of steps, the answer is the value and the operators are those of the chain."""
    for form in ("symbolic", "worded"):
        row = load_task("arithmetic_chain", "train", limit=1, seed=seed, num_steps=num_steps, forms=form)[0]
        signs = row["question"].replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert eval("".join(char for char in signs if char in "0123456789+-*")) == int(row["answer"])
        assert [char for char in signs if char in "+-*"] == row["operators"]
        assert len(row["operators"]) == num_steps
        assert row["solution"].endswith(row["answer"])


def test_splits_of_chains_share_none():
    """The three splits are disjoint for all seeds and both forms."""
    seen = {}
    for split in SPLITS:
        for form in ("symbolic", "worded"):
            for seed in (0, 1):
                rows = load_task("arithmetic_chain", split, limit=150, seed=seed, forms=form)["question"]
                signs = [q.replace("plus", "+").replace("minus", "-").replace("times", "*") for q in rows]
                chains = {"".join(char for char in q if char in "0123456789+-*") for q in signs}
                assert len(chains) == 150
                seen.setdefault(split, set()).update(chains)
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["test"] & seen["validation"]


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 0},
        {"num_steps": []},
        {"num_steps": "2"},
        {"num_steps": True},
        {"forms": "word"},
        {"forms": []},
        {"operator": "/"},
        {"steps": 2},
        {"limit": 0},
        {"limit": True},
        {"limit": 10**6, "num_steps": 1, "operator": "*"},
        {"seed": "1"},
        {"num_few_shot": -1},
        {"num_few_shot": 1.5},
        {"prompt_format": "chat"},
        {"template": "no place"},
        {"source": "built_in"},
        {"columns": {}},
        {"revision": "main"},
    ],
)
def test_options_that_are_refused(options):
    with pytest.raises(ConfigError, match="|".join([*options, "count"])):
        load_task("arithmetic_chain", "test", **options)


def test_stories(tmp_path):
    """The prompt is the opening; one file holds all splits, and no two splits share an opening."""
    lines = [f"Story {i // 2} has a very {i} long beginning, and an end." for i in range(200)]
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join([*lines, "<|endoftext|>", "Too short to cut."]))
    openings = {}
    for split in ("train", "validation", "test"):
        rows = load_task("story_sentiment", split, path, num_words=5)
        openings[split] = set(rows["question"])
        assert list(rows["prompt"]) == list(rows["question"])
        assert all(len(opening.split()) == 5 for opening in openings[split])
    assert sum(map(len, openings.values())) == len(set.union(*openings.values())) == 100
    assert len(openings["train"]) > len(openings["test"]) > 0
    for split in ("train", "validation", "test"):
        assert len(load_task("story_sentiment", split)) > 0
    row = load_task("story_sentiment", "train", path, 1, num_few_shot=1)[0]
    assert row["prompt"].split("\n\n")[0] in lines
    with pytest.raises(ConfigError, match="num_words"):
        load_task("story_sentiment", "train", path, num_words=0)


def test_openings_of_reviews(tmp_path):
    """Each opening has 2 to 7 words, drawn by seed and review; line breaks of the dataset are spaces."""
    review = "One<br /><br />two three four five six seven eight nine."
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"{at} {review}", "label": at % 2}) + "\n" for at in range(60)))
    rows = load_task("imdb", "train", path)["prompt"]
    assert {len(prompt.split()) for prompt in rows} == {2, 3, 4, 5, 6, 7}
    assert all(prompt == f"{at} {review}".replace("<br /><br />", " ")[: len(prompt)] for at, prompt in enumerate(rows))
    assert load_task("imdb", "train", path)["prompt"] == rows != load_task("imdb", "train", path, seed=1)["prompt"]
    assert {len(prompt.split()) for prompt in load_task("imdb", "train", path, num_words=3)["prompt"]} == {3}
    assert set(load_task("imdb", "train", "built_in")["answer"]) == {""}


@pytest.mark.parametrize("num_words", [0, (0, 4), (5, 2), (1, 2, 3), "many", None, 2.5])
def test_numbers_of_words_that_are_refused(num_words):
    with pytest.raises(ConfigError, match="num_words"):
        load_task("imdb", "train", "built_in", num_words=num_words)


def test_a_task_without_a_function_is_refused_where_it_is_made():
    with pytest.raises(ConfigError, match="'empty' has neither `read` nor `generate`"):
        Task("empty", "A task without examples.", ("test",))
