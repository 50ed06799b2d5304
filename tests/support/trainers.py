"""A trainer with all state that a checkpoint has to keep, small enough to be killed often."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_rlae.trainers.durable.checkpoints import DurableTrainer
from hf_rlae.trainers.durable.finite import FiniteTrainer
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler

NUM_EXAMPLES = 24
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


class Toy(nn.Module):
    """Two layers and dropout, which draws from torch's generator in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.3)
        self.second = nn.Linear(4, 1)

    def forward(self, x, index, noise=None):
        out = self.second(self.dropout(self.first(x).tanh()))[:, 0]
        if noise is not None:
            out = out + noise
        return {"loss": out.square().mean(), "logits": out}


def numbers(count=NUM_EXAMPLES):
    generator = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(3, generator=generator), "index": torch.tensor(at)} for at in range(count)]


class ToyTrainer(FiniteTrainer, DurableTrainer, Trainer):
    """Like an RL trainer: every third batch draws a buffer from all three generators, and three batches use it."""

    num_batches = 0
    buffer: torch.Tensor | None = None
    kill_step = None
    kill_evaluation = None
    sigterm_step = None
    sigterm_rank = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def extra_state(self):
        return {"num_batches": self.num_batches, "buffer": self.buffer, "nested": [({"a": b"x"}, None, 0.1)]}

    def load_extra_state(self, state):
        assert state["nested"] == [({"a": b"x"}, None, 0.1)]
        self.num_batches, self.buffer = state["num_batches"], state["buffer"]

    def _get_train_sampler(self, dataset=None):
        return EpochRepeatSampler(self.train_dataset, 1, seed=self.args.seed, epoch=lambda: int(self.state.epoch or 0))

    def training_step(self, model, inputs, num_items_in_batch=None):
        step = self.state.global_step + 1
        if step == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.sigterm_step and self.args.process_index == self.sigterm_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.num_batches % 3 == 0:
            self.buffer = torch.rand(8) + random.random() + float(np.random.rand()) + self.args.process_index
        inputs["noise"] = self.buffer[: len(inputs["x"])] * 0.1 * (self.num_batches % 3)
        self.num_batches += 1
        self.seen.append(inputs["index"].tolist())
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluation_loop(self, *args, **kwargs):
        """An evaluation that draws random numbers, as one that samples completions does."""
        torch.rand(3), random.random(), np.random.rand()
        if self.state.global_step == self.kill_evaluation:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluation_loop(*args, **kwargs)


def toy_trainer(folder, trainer_class=ToyTrainer, callbacks=None, **options) -> ToyTrainer:
    """Two epochs of six optimizer steps; each step has two batches of two."""
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "logging_steps": 3,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "log_level": "error",
        "seed": 3,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_backend": "gloo" if "RANK" in os.environ else None,
    }
    torch.manual_seed(0)
    model = Toy()
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    args = TrainingArguments(str(folder), **{**defaults, **options})
    data = numbers()
    return trainer_class(model=model, args=args, train_dataset=data, eval_dataset=data[:4], callbacks=callbacks)


def end_state(trainer) -> dict:
    """All state that two equal runs share, in plain Python."""
    return {
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict()["state"],
        "schedule": trainer.lr_scheduler.state_dict()["last_epoch"],
        "generators": (torch.random.get_rng_state(), random.getstate()[1], np.random.get_state()[1].tolist()),
        "extra": trainer.extra_state(),
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry or "eval_runtime" in entry],
        "step": trainer.state.global_step,
    }


def assert_equal(one, other, place="") -> None:
    """Bit-exactly equal, tensors included."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            # the duration of an evaluation is no result
            if not str(key).endswith(("_runtime", "_per_second")):
                assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{place}/{index}")
    else:
        assert one == other, place


def arm(at_event: int, at_step: int, log: str | None = None) -> None:
    """Kills this process at the n-th change that the save of a step makes to the file system.

    A file that PyTorch or safetensors has just written is first cut to half its size. With a log, the events are
    written there and the process is not killed.
    """
    events: list[str] = []
    saving = []
    save = DurableTrainer._save_checkpoint

    def armed_save(trainer, *args, **kwargs):
        if trainer.state.global_step == at_step:
            saving.append(True)
        save(trainer, *args, **kwargs)
        saving.clear()
        if log is not None:
            Path(log).write_text("\n".join(events))

    def note(event, torn=None):
        if not saving:
            return
        events.append(f"{event} {torn or ''}")
        if log is None and len(events) == at_event + 1:
            if torn is not None:
                os.truncate(torn, os.path.getsize(torn) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def writing(function):
        def write(tensors, path, *args, **kwargs):
            function(tensors, path, *args, **kwargs)
            note("wrote", str(path))

        return write

    def hook(event, arguments):
        if event in _CHANGES or (event == "open" and arguments[2] & os.O_ACCMODE != os.O_RDONLY):
            note(f"{event} {arguments[0]}")

    DurableTrainer._save_checkpoint = armed_save
    torch.save, safetensors.torch.save_file = writing(torch.save), writing(safetensors.torch.save_file)
    sys.addaudithook(hook)


def child(folder, result=None, resume=None, environment=None, kill=None, attributes=None, **options) -> None:
    """One run of the toy trainer, in its own process; writes its end, or its error, into the file `result`."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    # `Trainer.train` collects garbage first; it need not look at imported modules
    gc.freeze()
    if kill is not None:
        arm(*kill)
    trainer = toy_trainer(folder, **options)
    for name, value in (attributes or {}).items():
        setattr(trainer, name, value)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:
        if result is not None:
            Path(result).write_text(f"{type(error).__name__}: {error}")
        raise
    if result is not None:
        torch.save({**end_state(trainer), "seen": trainer.seen}, result)


def start(*arguments, **options) -> multiprocessing.Process:
    """`child` in a new process, forked from a process that has only imported the modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.trainers"])
    process = context.Process(target=child, args=arguments, kwargs=options)
    process.start()
    return process


def run(*arguments, **options) -> int:
    """The exit status of a `child`: the negative signal if a signal ended it."""
    process = start(*arguments, **options)
    process.join(180)
    if process.is_alive():
        process.kill()
        raise AssertionError("a run of the toy hangs")
    return process.exitcode


def run_two(folders, results=(None, None), **options) -> list[int]:
    """The exit statuses of two processes that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        processes.append(start(folders, results[rank], environment=environment, **options))
    for process in processes:
        process.join(180)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]
