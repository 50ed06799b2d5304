"""Trains a policy for two small language models on GSM8K and MBPP, and compares it with them on test questions.

python docs/recipes/two_small_models.py --config docs/recipes/two_small_models.yaml

Every value of the file can be overridden, as in `--max_steps 10`. See docs/recipes/two_small_models.md.
"""

from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets
from transformers import set_seed
from trl import TrlParser

from hf_rlae import (
    EnsembleForCausalLM,
    PolicyConfig,
    PolicyModel,
    RLAEConfig,
    RLAETrainer,
    evaluate,
    get_reward,
    get_task,
    load_task,
)


@dataclass
class RecipeArguments:
    """What is compared, and on how many questions; all other settings are those of `RLAEConfig`."""

    members: list[str] = field(metadata={"help": "Folders or Hub ids of the members, in order."})
    tasks: list[str] = field(metadata={"help": "Names of tasks."})
    sources: list[str] | None = field(default=None, metadata={"help": "A file or folder per task, instead of the Hub."})
    num_few_shot: int = field(default=0, metadata={"help": "Worked examples per question."})
    dtype: str = field(default="auto", metadata={"help": "Of the members."})
    device_map: str | None = field(default=None, metadata={"help": "Where members are loaded, such as cuda."})
    train_questions: int = field(default=1000, metadata={"help": "Questions per task to train on."})
    test_questions: int = field(default=200, metadata={"help": "Questions per task to compare on."})
    test_length: int = field(default=256, metadata={"help": "Most tokens of an answer in the comparison."})
    test_batch_size: int = field(default=16, metadata={"help": "Questions that are answered together."})
    methods: list[str] = field(default_factory=lambda: ["uniform"], metadata={"help": "To compare with, by name."})
    validation_questions: int = field(default=0, metadata={"help": "Per task, held out of training, to fit methods."})


def judged_by_task(completions, task, **columns):
    """The reward of each completion is that of its own task."""
    rewards = [None] * len(completions)
    for name in set(task):
        rows = [row for row, own in enumerate(task) if own == name]
        judge = get_reward(get_task(name).reward)
        own = {key: [values[row] for row in rows] for key, values in columns.items() if isinstance(values, list)}
        for row, value in zip(rows, judge(completions=[completions[row] for row in rows], **own), strict=True):
            rewards[row] = value
    return rewards


def load_questions(recipe: RecipeArguments, split: str, number: int, seed: int) -> dict[str, Dataset]:
    """Questions of a split by task, each with the name of its task."""
    sources = dict(zip(recipe.tasks, recipe.sources or [], strict=bool(recipe.sources)))
    shots = {"num_few_shot": recipe.num_few_shot}
    found = {name: load_task(name, split, sources.get(name), number, seed, **shots) for name in recipe.tasks}
    return {name: rows.add_column("task", [name] * len(rows)) for name, rows in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Trains, compares, and saves the policy and the table."""
    recipe, args = TrlParser((RecipeArguments, RLAEConfig)).parse_args_and_config(arguments)
    held_out = recipe.validation_questions
    rows = load_questions(recipe, "train", recipe.train_questions + held_out, args.seed)
    validation = {name: own.select(range(held_out)) for name, own in rows.items()}
    train_dataset = concatenate_datasets([own.select(range(held_out, len(own))) for own in rows.values()])
    test = load_questions(recipe, "test", recipe.test_questions, args.seed)

    set_seed(args.seed)
    ensemble = EnsembleForCausalLM.from_members(
        recipe.members, dtype=recipe.dtype, device_map=recipe.device_map, span_length=args.span_length
    )
    ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members, span_length=args.span_length)))
    trainer = RLAETrainer(ensemble, judged_by_task, args, train_dataset)
    trainer.train(resume_from_checkpoint=True)  # from the newest checkpoint; without one, from the beginning
    trainer.save_model()

    report = evaluate(
        ensemble,
        test,
        methods={"policy": ensemble, **{name: name for name in recipe.methods}},
        reward=judged_by_task,
        validation=validation if held_out else None,
        max_new_tokens=recipe.test_length,
        batch_size=recipe.test_batch_size,
        seed=args.seed,
        output_dir=f"{args.output_dir}/comparison",
    )
    print(report.to_markdown())
    trainer.end()


if __name__ == "__main__":
    main()
