"""The sides of `vlm_grpo_step.py`: each a process that runs one step whenever its turn comes."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = {"short": 56, "picture": 560}
"""Side of a workload's pictures in pixels; every 28 x 28 pixels are one token."""
TRL_PASS = {"short": 64, "picture": 16}
"""Answers in one of TRL's passes: of 8, 16 and 64 what is fastest for it on a CPU (they differ by a tenth)."""
LR, BETAS, EPS = 2e-4, (0.9, 0.99), 1e-8


class Clock:
    """Seconds per phase of the step that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = self.began_cpu = 0.0

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Time every call of `owner.name`."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.time(phase):
                return original(*args, **kwargs)

        setattr(owner, name, timed)

    def watch_updates(self) -> None:
        """Time every backward pass and every optimizer step of the process."""
        import torch
        from torch.optim import optimizer

        self.wrap(torch.Tensor, "backward", "backward")
        started: list[float] = []
        optimizer.register_optimizer_step_pre_hook(lambda *_: started.append(time.perf_counter()))
        optimizer.register_optimizer_step_post_hook(
            lambda *_: self.seconds.update(optimizer=time.perf_counter() - started.pop())
        )

    def start(self) -> None:
        self.seconds, self.began, self.began_cpu = {}, time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        """Phases, `rest`, `all`, and `cpu`: seconds of all threads on a processor, without those spent waiting for one."""
        whole, cpu = time.perf_counter() - self.began, time.process_time() - self.began_cpu
        return {**self.seconds, "rest": whole - sum(self.seconds.values()), "all": whole, "cpu": cpu}


class Turns:
    """A side's end of the pipe: waits for its turn, and tells what a step took."""

    def __init__(self) -> None:
        # what libraries print must not get between the answers
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.clock = Clock()

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.clock.start()

    def tell(self, **more: float) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(self.clock.stop() | more | {"memory": memory}), file=self.answers, flush=True)


def stage_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """The project's own GRPO stage with the prompts of this workload, and its policy."""
    from mmrl.config import load

    size, number = SIZES[options.workload], options.prompts * (options.warmup + options.repeats)
    mixture = (
        f"[{{kind: count_shapes, level: 1, size: {size}, noise: 12}}, {{kind: locate, level: 1, size: {size}, noise: 12}}, "
        f"{{kind: rotation, level: 2, size: {size}, noise: 12, reference: false}}]"
    )
    pictures = "{name: procedural, style: scene}"
    reward = f"{{name: '{Path(__file__).with_name('vlm_naive.py')}:distinct'}}"
    resolved = load("methods/vlm_grpo", [
        f"policy.max_pixels={max(size, 112) ** 2}", f"stages.rl.rollout.max_new_tokens={options.tokens}",
        f"stages.rl.prompts={{name: puzzles, instruction: '', number: {number}, mixture: {mixture}, pictures: {pictures}}}",
        f"stages.rl.prompts_per_step={options.prompts}", f"stages.rl.group_size={options.group}",
        f"stages.rl.micro_batch={options.micro_batch}", f"stages.rl.rewards={{distinct: {reward}}}",
        f"stages.rl.optimizer={{lr: {LR}, betas: {list(BETAS)}, eps: {EPS}, schedule: constant, warmup_steps: 0}}",
    ])  # fmt: skip
    return resolved.stages[-1], resolved.policy


def prompts_of(options: argparse.Namespace) -> list[list[Any]]:
    """The prompts of every step, as the project draws them."""
    from mmrl.sampler import GroupSampler

    stage, _ = stage_of(options)
    sampler = GroupSampler(stage.prompts.load(), options.prompts, options.group, 0, stage.name)
    return [sampler.prompts_of(step) for step in range(options.warmup + options.repeats)]


def run_mmrl(options: argparse.Namespace, turns: Turns) -> None:
    """The project's stage as its trainer runs it."""
    import torch

    from mmrl.distributed import Group
    from mmrl.meter import Meter
    from mmrl.optim import Optimization
    from mmrl.stages.rl import RLWork
    from mmrl.vlm.models import TinyQwen3VL
    from mmrl.vlm.policy import VlmPolicy

    class Endless(TinyQwen3VL):
        """No token ends an answer."""

        @property
        def eos_ids(self) -> tuple[int, ...]:
            return (-1,)

    stage, given = stage_of(options)
    policy = Endless(**given.model_dump())
    group = Group("cpu", threads=torch.get_num_threads())
    policy.load(group.device)
    policy.prepare(stage.train, False)
    work = RLWork(stage, policy, group, 0, lambda text: print(text, file=sys.stderr))
    optimization = Optimization(policy.trainable(), stage.section.optimizer, None, 1000, group)
    clock = turns.clock
    clock.wrap(VlmPolicy, "rollout", "generation")
    clock.wrap(VlmPolicy, "replay", "forward")
    clock.watch_updates()
    for step in range(options.warmup + options.repeats):
        turns.wait()
        meter = Meter()
        for update in work.updates(step, meter):
            assert update is not None
            optimization.apply(update)
        own = meter.reduce(group)
        turns.tell(prompt_tokens=own["rollout/prompt_tokens"], tokens=own["rollout/tokens"])


def run_naive(options: argparse.Namespace, turns: Turns) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from vlm_naive import NaiveLoop

    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    processor = AutoProcessor.from_pretrained(options.folder)
    loop = NaiveLoop(model, processor, optimizer, options.group, options.tokens, turns.clock.time)
    steps = prompts_of(options)
    turns.clock.watch_updates()
    for prompts in steps:
        turns.wait()
        turns.tell(**loop.step(prompts))


def run_trl(options: argparse.Namespace, turns: Turns) -> None:
    """GRPOTrainer.train(), its steps held back by a callback. Pictures come from memory: nothing is read or decoded."""
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from vlm_naive import distinct

    from mmrl.rollout import Sample

    rows = [prompt for prompts in prompts_of(options) for prompt in prompts]
    images = [Image.fromarray(prompt.media[0]) for prompt in rows]

    def look_up(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        asked = [[{"role": "user", "content": rows[number].text}] for number in batch["number"]]
        return {"prompt": asked, "image": [images[number] for number in batch["number"]]}

    dataset = Dataset.from_dict({"number": list(range(len(rows)))})
    dataset.set_transform(look_up)

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        return list(distinct([Sample(rows[0], text=one[0]["content"]) for one in completions]))

    class TakeTurns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            torch.set_num_threads(options.threads)
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.tell(**counts)
            turns.wait()

    samples = options.prompts * options.group
    part = min(TRL_PASS[options.workload], samples)
    config = GRPOConfig(
        output_dir=options.folder + "/trl", per_device_train_batch_size=part,
        gradient_accumulation_steps=-(-samples // part), num_generations=options.group,
        max_completion_length=options.tokens, generation_kwargs={"min_new_tokens": options.tokens}, temperature=1.0,
        beta=0.0, epsilon=0.2, loss_type="grpo", scale_rewards="group", num_iterations=1, shuffle_dataset=False,
        gradient_checkpointing=options.side == "trl_checkpointing", bf16=False, use_cpu=True, learning_rate=LR,
        lr_scheduler_type="constant", adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPS, weight_decay=0.0,
        max_grad_norm=1.0, optim="adamw_torch_fused", max_steps=options.warmup + options.repeats, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(options.folder, reward, config, dataset, callbacks=[TakeTurns()])
    counts: dict[str, float] = {}
    generate = trainer._generate

    def counted(prompts: list[Any]) -> Any:
        found = generate(prompts)
        for name, ids in zip(("prompt_tokens", "tokens"), found, strict=False):
            counts[name] = statistics.mean(len(row) for row in ids)
        return found

    trainer._generate = counted  # type: ignore[method-assign]
    turns.clock.wrap(trainer, "_generate", "generation")
    turns.clock.wrap(trainer, "compute_loss", "forward")
    turns.clock.watch_updates()
    trainer.train()


RUNS: dict[str, Callable[[argparse.Namespace, Turns], None]] = {
    "mmrl": run_mmrl, "trl": run_trl, "trl_checkpointing": run_trl, "naive": run_naive,
}  # fmt: skip
