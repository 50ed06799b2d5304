"""Which part of a completion is graded: options, kinds of completions, and every rule."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RuleReward, get_reward
from hf_rlae.rewards.answer_part import ANSWER_DELIMITERS, REASONING_DELIMITERS, graded_part
from hf_rlae.tasks import list_tasks

RULES = {"number": ("12", "13"), "letter": ("B", "A"), "exact_match": ("Paris", "London")}
"""By rule, a right and a wrong completion for the right one as ground truth."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("opening", "closing"), REASONING_DELIMITERS)
def test_reasoning_in_every_rule_and_form(rule, opening, closing):
    right, wrong = RULES[rule]
    completions = {
        f"{opening}{wrong}{closing}{right}": 1.0,
        f"{opening.upper()}\n{wrong}\n{closing.upper()}\n\n{right}": 1.0,
        f"{wrong}{closing}{right}": 1.0,
        f"{opening}{right}{closing}{wrong}": 0.0,
        f"{opening}{right}{closing}": 0.0,
        f"{opening}The answer is {right}.": 0.0,
        f"{opening}{wrong}{closing}{right}{opening}{right}": 0.0,
    }
    found = get_reward(rule)(completions=list(completions), answer=[right] * len(completions))
    assert dict(zip(completions, found, strict=True)) == completions


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("opening", "closing"), ANSWER_DELIMITERS)
def test_answer_tags_in_every_rule_and_form(rule, opening, closing):
    right, wrong = RULES[rule]
    texts = [f"The answer is {wrong}.\n{opening} {right}\n{closing} #### {wrong}", f"{opening}{wrong}{closing} {right}"]
    assert get_reward(rule)(completions=texts, answer=[right] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
def test_messages(rule):
    right, wrong = RULES[rule]
    thought = {"role": "assistant", "content": f"<think>{wrong}</think>{right}"}
    parts = {"role": "assistant", "content": [{"type": "thinking", "thinking": wrong}, {"type": "text", "text": right}]}
    apart = {"role": "assistant", "content": right, "reasoning_content": wrong}
    unfinished = {"role": "assistant", "content": f"<think>{right}"}
    nothing = {"role": "assistant", "content": None, "reasoning_content": right}
    completions = [[thought], [parts], [apart], [unfinished], [nothing]]
    assert get_reward(rule)(completions=completions, answer=[right] * 5) == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
def test_options(rule):
    right, wrong = RULES[rule]
    other = get_reward(rule, reasoning_delimiters=[("<<", ">>")], answer_delimiters=[("Final[", "]")])
    texts = [f"<<{wrong}>>{right}", f"<think>{wrong}</think> final[{right}]", f"<<{right}"]
    assert other(completions=texts, answer=[right] * 3) == [1.0, 1.0, 0.0]
    assert pickle.loads(pickle.dumps(other))(completions=texts, answer=[right] * 3) == [1.0, 1.0, 0.0]
    none = get_reward(rule, reasoning_delimiters=[], answer_delimiters=[])
    assert none(completions=[f"<think>The answer is {right}."], answer=[right]) == [1.0]


@pytest.mark.parametrize("rule", RULES)
def test_a_prompt_that_opens_the_reasoning(rule):
    """Without being told, nobody can know that the text is a thought that was cut off."""
    right, wrong = RULES[rule]
    reward = get_reward(rule, prompt_opens_reasoning=True)
    texts = [f"The answer is {right}.", f"{wrong}</think>{right}", f"<think>{wrong}</think>{right}"]
    assert reward(completions=texts, answer=[right] * 3) == [0.0, 1.0, 1.0]
    assert get_reward(rule)(completions=texts[:1], answer=[right]) == [1.0]


@pytest.mark.parametrize(
    "given", ["<think>", ["<think>"], [("<think>",)], [("", "</think>")], [("a", "a")], [(1, 2)], 7, None, [("a", " ")]]
)
@pytest.mark.parametrize("option", ["reasoning_delimiters", "answer_delimiters"])
def test_delimiters_that_are_refused(option, given):
    with pytest.raises(ConfigError, match=rf"{option}=.*expected pairs"):
        get_reward("number", **{option: given})


@pytest.mark.parametrize("words", ["answer", [], [""], ["x"], [7], None])
def test_answer_words_that_are_refused(words):
    with pytest.raises(ConfigError, match="answer_words="):
        get_reward("number", answer_words=words)


LANGUAGES = {
    "German": ("Antwort", "Die Antwort ist {}.", "Antwort: {}"),
    "French": ("réponse", "La réponse est {}.", "Réponse : {}"),
    "Spanish": ("respuesta", "La respuesta es {}.", "RESPUESTA: {}"),
    "Russian": ("ответ", "Ответ: {}.", "ОТВЕТ: {}"),
    "Chinese": ("答案", "答案是{}。", "答案：{}"),
    "two words": ("final result", "The final result is {}.", "Final result: {}"),
}


@pytest.mark.parametrize(("word", "sentence", "line"), LANGUAGES.values(), ids=LANGUAGES)
@pytest.mark.parametrize("rule", RULES)
def test_answer_words(rule, word, sentence, line):
    right, wrong = RULES[rule]
    reward = get_reward(rule, answer_words=["answer", word])
    texts = [form.format(right) + f"\n({wrong}) {wrong}" for form in (sentence, line, "The answer is {}.")]
    assert reward(completions=texts, answer=[right] * 3) == [1.0, 1.0, 1.0]


def test_stories():
    """A story is what follows the reasoning; it has no questions and no answer tags."""
    reward = get_reward("story_sentiment")
    texts = [
        "<think>terrible</think>happy",
        "happy",
        "<think>happy",
        "happy\nQuestion: sad",
        "<answer>happy</answer> sad",
    ]
    thought, plain, unfinished, question, tag = reward(completions=texts)
    assert thought == plain > question
    assert unfinished == 0.0
    assert tag < plain


def test_a_rule_of_your_own():
    class Length(RuleReward):
        def reference(self, answer, row):
            return answer

        def is_right(self, text, reference, row):
            return len(text) == reference

    texts = ["<think>1</think>abc", "<answer>abc</answer>", "abc", "<think>abc", "abc\nQ: d"]
    assert Length("length")(completions=texts, answer=[3] * 5) == [1.0, 1.0, 1.0, 0.0, 1.0]
    # what is empty because it was cut off is wrong, whatever the rule says
    assert Length("length")(completions=["<think>", ""], answer=[0, 0]) == [0.0, 1.0]
    assert Length("length", answer_delimiters=[])(completions=["<answer>abc</answer>"], answer=[3]) == [0.0]


QUESTIONS = {
    "question": "\n\nQuestion: And Tom?\nAnswer: ",
    "one_newline": "\nQuestion: And Tom?\nAnswer: ",
    "capitals": "\n\nQUESTION: And Tom?\nANSWER: ",
    "short": "\n\nQ: And Tom?\nA: The answer is ",
    "short_bold": "\n\n**Q:** And Tom?\n**A:** The answer is ",
    "numbered": "\n\nQuestion 2: And Tom?\nAnswer: ",
    "numbered_short": "\n\nQ2. And Tom?\nThe answer is ",
    "number_sign": "\n\nProblem #2:\nAnd Tom?\nAnswer: ",
    "heading": "\n\n### Problem 2\nAnd Tom?\n### Answer: ",
    "bold": "\n\n**Question**: And Tom?\n**Answer**: ",
    "next": "\n\nNext question: And Tom?\nAnswer: ",
    "exercise": "\n\nExercise 2:\nAnd Tom?\nAnswer: ",
    "instruction": "\n\n### Instruction:\nAnd Tom?\n### Response:\nThe answer is ",
    "human": "\n\nHuman: And Tom?\n\nAssistant: The answer is ",
    "user": "\nuser\nAnd Tom?\nassistant\nThe answer is ",
    "chat": "<|im_end|>\n<|im_start|>user\nAnd Tom?<|im_end|>\n<|im_start|>assistant\nThe answer is ",
    "inst": " [INST] And Tom? [/INST] The answer is ",
    "mbpp": "\n\nTask: And Tom?\nAnswer: ",
    "piqa": "\n\nGoal: And Tom?\nAnswer: ",
    "tag": "\n\n<question>And Tom?</question>\nThe answer is ",
    "brackets": "\n\n[Question] And Tom?\n[Answer]: ",
    "numbered_brackets": "\n\n[Question 2]\nAnd Tom?\nAnswer: ",
    "example": "\n\nExample 2: And Tom?\nAnswer: ",
    "input": "\n\nInput: And Tom?\nOutput: the answer is ",
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tail", QUESTIONS.values(), ids=QUESTIONS)
def test_invented_questions(rule, tail):
    right, wrong = RULES[rule]
    texts = [f"{right}{tail}{wrong}", f"The answer is {right}.{tail}{wrong}", f"{wrong}{tail}{right}"]
    assert get_reward(rule)(completions=texts, answer=[right] * 3) == [1.0, 1.0, 0.0]


def test_the_formats_of_tasks():
    """The text that a task renders between two questions ends the answer."""
    forms = [task.text for task in list_tasks() if task.text != "{question}"]
    assert len(forms) >= 8
    for form in forms:
        assert graded_part(f"12\n\n{form.format(question='And Tom?')} 13").text.strip() == "12"


@pytest.mark.parametrize(
    "text",
    [
        "Question: how many?\nAnswer: 12",
        "Here it is.\nI have a question about that.\n12",
        "Let me repeat it:\n\nQuestion: how many?\nAnswer: 12",
        "Sales\nQ1: 3\nQ2: 4\nQ3: 5\nAll: 12",
        "The users: 5\nuser 7\n12",
        "A\nproblem solved: 12",
    ],
)
def test_lines_that_begin_no_question(text):
    assert graded_part(text).text == text


RESTATED = [
    ("gsm8k", "Let me restate.\n\nProblem: Find x.\n\nSolution: x = {}", "12", "a heading for the question"),
    ("gsm8k", "First, understand.\nQuestion: how many?\n3*4\nThe answer is {}", "12", "the question, then reasoning"),
    ("gsm8k", "In parts.\n\nProblem 1: 3*2 = 6\nProblem 2: 6*2 = 12\n\nSo it is {}", "12", "parts, announced"),
    ("gsm8k", "Problem 1: 3*2 = 6\nProblem 2: 6*2 = 12\nProblem 3: is it?\n{}", "12", "parts from the first line on"),
    ("gsm8k", "Small cases.\nExample 1: 2 gives 3\nExample 2: 3 gives 5\nSo {}", "12", "examples"),
    ("gsm8k", "There are 2 cases.\nExample 1: 2 gives 3\nExample 2: 3 gives 5\nSo {}", "12", "examples after a number"),
    ("gsm8k", "I read it.\n<question>How many?</question>\nIt is {}", "12", "tags around the question"),
    (
        "gsm8k",
        "I read it.\nProblem: Find x.\nSolution: {}\n\nProblem: Find y.\nSolution: 9",
        "12",
        "only the first one",
    ),
    ("gsm8k", "The program adds 3.\nInput: 9\nOutput: {}", "12", "no empty line before the input"),
    ("svamp", "Tom's question.\nQuestion: Ann has 9. And Tom?\nHe has {}", "12", "the question has numbers"),
    ("arc_challenge", "Let me see.\nQuestion: which organ?\nThe answer is {}", "B", "no option is named before"),
    ("math_verify", "Let me restate.\n\nProblem: Find x.\n\nSolution: $x = {}$", "12", "no expression before"),
]


@pytest.mark.parametrize(("task", "form", "right", "reason"), RESTATED, ids=[row[3] for row in RESTATED])
def test_questions_before_any_answer(task, form, right, reason):
    """What the rule cannot read is no answer, so the question behind it is the one that was asked."""
    if task == "math_verify":
        pytest.importorskip("math_verify")
    wrong = {"12": "13", "B": "A"}[right]
    columns = {"choices": [["the heart", "the liver"]] * 2} if task == "arc_challenge" else {}
    texts = [form.format(right), form.format(wrong)]
    assert get_reward(task)(completions=texts, answer=[right] * 2, **columns) == [1.0, 0.0], reason


ANSWERED = [
    ("gsm8k", "12 or 13\nQuestion: And?\nThe answer is {}", "12", "an ambiguous answer"),
    ("gsm8k", "It is not 5.\nQuestion: And?\nThe answer is {}", "12", "a negated number"),
    ("gsm8k", "13.\n\nQuestion 1: And?\nThe answer is {}", "12", "a numbered question after an answer"),
    ("gsm8k", "13.\n\nProblem 1: a\nAnswer: 1\nProblem 2: And?\nThe answer is {}", "12", "parts after an answer"),
    ("arc_challenge", "A or B\nQuestion: And?\nThe answer is {}", "B", "an ambiguous letter"),
    ("arc_challenge", "It's the heart!\nQuestion: And?\nThe answer is {}", "B", "the text of an option"),
    ("triviaqa", "London\nQuestion: And?\nThe answer is {}", "Paris", "any word may be an answer"),
    ("math_verify", "$13$\n\nQuestion: And?\nThe answer is ${}$", "12", "an expression"),
]


@pytest.mark.parametrize(("task", "form", "right", "reason"), ANSWERED, ids=[row[3] for row in ANSWERED])
def test_no_second_chance_after_an_answer(task, form, right, reason):
    if task == "math_verify":
        pytest.importorskip("math_verify")
    columns = {"choices": [["the heart", "the liver"]]} if task == "arc_challenge" else {}
    assert get_reward(task)(completions=[form.format(right)], answer=[right], **columns) == [0.0], reason


pieces = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<THINK>", "[/THINK]", "<answer>", "</answer>", "\nQuestion: ", "\nQ", "User:", "12"]
        + ["İ", "ß", "\ud800", "\n", " ", "<", ">", "a"]
    ),
    max_size=20,
).map("".join)


@given(pieces, pieces)
def test_only_what_follows_the_reasoning_counts(before, after):
    if "think" not in after.lower():
        assert graded_part(f"{before}</think>{after}", answer_delimiters=()) in (None, graded_part(after, (), ()))
        assert graded_part(f"{before}</think>{after}<think>{after}") is None
    part = graded_part(before)
    assert part is None or part.text in before
