"""One Flow-GRPO iteration (rollout, reward, update) of this project against a plain loop written the way the original does it.

Both sides use the same embedded model from the same seed, the same prompts, group size, denoising steps, trained steps,
reward functions, optimizer and thread count. The plain loop samples and trains in batches of `--batch` images, encodes the
prompts of every batch anew, keeps the latents of every step, and trains step by step with one backward pass per (batch, step);
gradients are accumulated into the same single optimizer step. The project runs as its trainer runs it.
The two sides take turns within one process; the table shows medians over `--repeats` turns after one warm-up turn.

    python tests/bench/flow_grpo_iteration.py [--prompts 8] [--group 24] [--steps 8] [--batch 24] [--micro-batch 256] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mmrl import components
from mmrl.distributed import Group
from mmrl.meter import Meter
from mmrl.optim import Optimization
from mmrl.reward import RewardSet
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import derive_seed
from mmrl.stages.rl import RLWork

PHASES = ("rollout", "reward", "update")
CLIP, LEVEL, LR = 1e-4, 0.7, 3e-4


class PlainLoop:
    """Sampling and training as in a single-file Flow-GRPO script."""

    def __init__(
        self, policy: Any, prompts: list[Prompt], group: int, steps: int, batch: int, rewards: RewardSet
    ) -> None:
        self.policy, self.prompts, self.group_size, self.steps, self.batch, self.rewards = (
            policy,
            prompts,
            group,
            steps,
            batch,
            rewards,
        )
        self.adapter = policy.adapter
        self.network = self.adapter.network
        self.scheduler = self.adapter.pipe.scheduler
        self.parameters = list(policy.trainable().values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, eps=1e-5)

    def iterate(self, seed: int) -> dict[str, float]:
        seconds = {}
        began = time.perf_counter()
        batches = self._sample(seed)
        seconds["rollout"] = time.perf_counter() - began
        began = time.perf_counter()
        rows = [sample for batch in batches for sample in batch["samples"]]
        scores = self.rewards.score(rows)
        reward = self.rewards.total(scores, np.repeat(np.arange(len(self.prompts)), self.group_size)).reshape(
            len(self.prompts), -1
        )
        advantage = (reward - reward.mean(1, keepdims=True)) / (reward.std(1, keepdims=True) + 1e-4)
        advantages = torch.as_tensor(advantage.reshape(-1), dtype=torch.float32).split(self.batch)
        seconds["reward"] = time.perf_counter() - began
        began = time.perf_counter()
        self._train(batches, advantages)
        seconds["update"] = time.perf_counter() - began
        return seconds

    def _sigmas(self) -> torch.Tensor:
        self.scheduler.set_timesteps(self.steps)
        return self.scheduler.sigmas.float()

    def _encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            prompt, _, pooled, _ = self.adapter.pipe.encode_prompt(
                texts,
                None,
                None,
                do_classifier_free_guidance=False,
                max_sequence_length=self.adapter.max_sequence_length,
            )
        return prompt, pooled

    def _step(
        self,
        x: torch.Tensor,
        k: int,
        sigmas: torch.Tensor,
        embeds: tuple[torch.Tensor, torch.Tensor],
        noise_or_next: torch.Tensor,
        replay: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One SDE step: (next latent, log-prob per image). The network predicts the clean image."""
        sigma, sigma_next = sigmas[k], sigmas[k + 1]
        timestep = self.scheduler.timesteps[k].float().expand(len(x))
        clean = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=embeds[0],
            pooled_projections=embeds[1],
            return_dict=False,
        )[0]
        velocity = (x - clean) / sigma
        delta = sigma - sigma_next
        g = LEVEL * (sigma / (1 - min(sigma, sigmas[1]))) ** 0.5
        std = g * delta**0.5
        mean = x - delta * (velocity + g**2 / (2 * sigma) * (x + (1 - sigma) * velocity))
        following = noise_or_next if replay else mean + std * noise_or_next
        log_prob = -((following.detach() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * np.log(2 * np.pi)
        return following, log_prob.mean(dim=(1, 2, 3))

    @torch.no_grad()
    def _sample(self, seed: int) -> list[dict[str, Any]]:
        sigmas, generator = self._sigmas(), torch.Generator().manual_seed(seed)
        texts = [prompt for prompt in self.prompts for _ in range(self.group_size)]
        batches = []
        for start in range(0, len(texts), self.batch):
            rows = texts[start : start + self.batch]
            embeds = self._encode([prompt.text for prompt in rows])
            x = torch.randn(
                len(rows), *self.adapter.latent_shape(self.adapter.size(self.sampling_type())), generator=generator
            )
            latents, log_probs = [x], []
            for k in range(self.steps):
                x, log_prob = self._step(x, k, sigmas, embeds, torch.randn(x.shape, generator=generator), False)
                latents.append(x)
                log_probs.append(log_prob)
            images = self.adapter.decode(x)
            samples = [Sample(prompt, images=(image,)) for prompt, image in zip(rows, images, strict=True)]
            batches.append(
                {
                    "texts": rows,
                    "latents": torch.stack(latents, 1),
                    "log_probs": torch.stack(log_probs, 1),
                    "samples": samples,
                }
            )
        return batches

    def _train(self, batches: list[dict[str, Any]], advantages: tuple[torch.Tensor, ...]) -> None:
        sigmas, trained = self._sigmas(), self.steps - 1
        self.optimizer.zero_grad()
        for batch, advantage in zip(batches, advantages, strict=True):
            embeds = self._encode([prompt.text for prompt in batch["texts"]])
            for k in range(trained):
                _, log_prob = self._step(batch["latents"][:, k], k, sigmas, embeds, batch["latents"][:, k + 1], True)
                ratio = torch.exp(log_prob - batch["log_probs"][:, k])
                loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                (loss / (trained * len(batches))).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


class Project:
    """One step of the project's own rl stage."""

    def __init__(self, config: str, overrides: list[str]) -> None:
        from mmrl.config import load

        resolved = load(config, overrides)
        self.stage = resolved.stages[-1]
        self.group = Group("cpu", threads=torch.get_num_threads())
        self.policy = resolved.policy
        self.policy.load(self.group.device)
        self.policy.prepare(self.stage.train, False)
        self.work = RLWork(self.stage, self.policy, self.group, 0, lambda text: None)
        self.work.parity_checked = True
        self.optimization = Optimization(self.policy.trainable(), self.stage.section.optimizer, None, 1000, self.group)

    def iterate(self, step: int) -> dict[str, float]:
        meter = Meter()
        for update in self.work.updates(step, meter):
            began = time.perf_counter()
            self.optimization.apply(update)
            meter.seconds["update"] = time.perf_counter() - began
        return meter.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "prompts": 8,
        "group": 24,
        "steps": 8,
        "batch": 24,
        "micro-batch": 256,
        "threads": 1,
        "repeats": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="print one JSON row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = [
        f"stages.rl.prompts_per_step={options.prompts}", f"stages.rl.group_size={options.group}", f"stages.rl.micro_batch={options.micro_batch}",
    ]  # fmt: skip
    project = Project("methods/flow_grpo", [*overrides, *fixed(options)])
    policy = components.build("policy", {"name": "tiny_sd3"})
    policy.load(torch.device("cpu"))
    policy.prepare(project.stage.train, False)
    prompts = [draw.prompt for draw in project.work.collector.sampler.draws(0)[:: options.group]]
    plain = PlainLoop(policy, prompts, options.group, options.steps, options.batch, RewardSet(project.stage.rewards))
    sides: dict[str, Callable[[int], dict[str, float]]] = {"mmrl": project.iterate, "plain": plain.iterate}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(options.repeats + 1):
        for name, iterate in sides.items():
            found = iterate(derive_seed("bench", turn) if name == "plain" else turn)
            if turn:
                times[name].append(found)
    report(times, options)


def fixed(options: argparse.Namespace) -> list[str]:
    """What both sides do alike: separate start noise, all steps but the last trained, no KL, one update."""
    return [
        f"stages.rl.rollout.num_steps={options.steps}", "stages.rl.rollout.sampler={kind: flow_sde, level: 0.7}", "stages.rl.rollout.start_noise=separate",
        f"stages.rl.rollout.micro_batch={options.micro_batch}", "stages.rl.rollout.guidance_scale=1.0", "stages.rl.train={mode: full}",
        "stages.rl.objective.terms=[]", "stages.rl.updates_per_rollout=1", "stages.rl.epochs=1",
        f"stages.rl.objective.steps.select={{name: fraction, fraction: {(options.steps - 1) / options.steps + 1e-6}}}",
        f"stages.rl.optimizer={{lr: {LR}, eps: 1e-5}}",
    ]  # fmt: skip


def report(times: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    median = {
        name: {phase: statistics.median(turn.get(phase, 0.0) for turn in turns) for phase in PHASES}
        for name, turns in times.items()
    }
    for phases in median.values():
        phases["all"] = sum(phases.values())
    images = options.prompts * options.group
    if options.json:
        row = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            **vars(options),
            "seconds": median,
        }
        print(json.dumps(row))
        return
    print(
        f"{images} images, {options.steps} steps, {options.threads} thread(s), torch {torch.__version__}; seconds, median of {options.repeats}"
    )
    print(f"{'phase':<10}{'mmrl':>10}{'plain':>10}{'plain/mmrl':>12}")
    for phase in (*PHASES, "all"):
        ours, theirs = median["mmrl"][phase], median["plain"][phase]
        print(f"{phase:<10}{ours:>10.3f}{theirs:>10.3f}{theirs / ours:>12.2f}")
    print(f"images/s  {images / median['mmrl']['all']:>10.1f}{images / median['plain']['all']:>10.1f}")


if __name__ == "__main__":
    main()
