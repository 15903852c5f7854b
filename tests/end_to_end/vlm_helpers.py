"""A run of seconds of a policy that looks and writes, and the command inside this process.

The command is the real one, from its arguments to its exit code; only the time to start Python and torch is saved.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

TINY_VLM = """
# Every part of the house that a vision-language run goes through, nothing learned but to stop.
policy: {name: tiny_qwen3vl}
run: {seed: 3, threads: 1}
checkpoint: {every: 2, keep_last: 2}
stages:
  warm:
    kind: supervised
    steps: 5
    batch_size: 5
    micro_batch: 3
    examples: &puzzles
      name: puzzles
      instruction: ""
      mixture: [{kind: count_shapes, size: 56}, {kind: rotation, size: 56, reference: false}]
      think: empty
    optimizer: {lr: 5e-3, eps: 1e-5}
    ema: {decay: 0.5}
  rl:
    kind: rl
    steps: 2
    prompts: &mixed {name: "parts.py:Mixed", instruction: "", mixture: [{kind: count_shapes, size: 56}], number: 20, split: train}
    prompts_per_step: 3
    group_size: 3
    micro_batch: 4
    rollout: {max_new_tokens: 10, micro_batch: 4}
    rewards: &rewards
      letters: {name: "parts.py:letters"}
      format: {name: puzzle, mode: format, weight: 0.5}
    objective:
      advantage: {name: group, scale: group}
      surrogate: {name: clip, low: 0.2, high: 0.2}
      terms: [{name: kl, coef: 0.01, estimator: k3}, {name: papo, coef: 0.02, entropy: 0.05}]
    optimizer: {lr: 1e-3, eps: 1e-5}
    ema: {decay: 0.9}
evaluation:
  prompts: {name: "parts.py:Mixed", instruction: "", mixture: [{kind: count_shapes, size: 56}], number: 20, split: held_out}
  samples_per_prompt: 1
  sampling: {max_new_tokens: 10, temperature: 0}
  rewards:
    exact: {name: puzzle, mode: exact}
  by: [kind]
"""

PARTS = '''
from dataclasses import replace

from mmrl.data.puzzles.source import PuzzlePrompts


class Mixed(PuzzlePrompts):
    """Puzzles, every third of them asked without its picture."""

    def prompt(self, stream, seed, index):
        found = super().prompt(stream, seed, index)
        return found if index % 3 else replace(found, media=(), text=found.text.replace("<image>", ""))


def letters(samples):
    return [len(set(sample.text)) / 10 - len(sample.text) / 40 for sample in samples]


def fourths(samples):
    return [float(len(sample.text) % 4 == 0) for sample in samples]
'''


def write_vlm_config(folder: Path, text: str = TINY_VLM) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parts.py").write_text(PARTS)
    path = folder / "tiny_vlm.yaml"
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def mmrl_inside(*arguments: object, check: bool = True) -> Done:
    """Run the command in this process; torch's settings are put back afterwards."""
    from mmrl.cli import main

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        argv = mock.patch.object(sys, "argv", ["mmrl", *map(str, arguments)])
        with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    done = Done(code, out.getvalue(), err.getvalue())
    if check and done.code:
        raise AssertionError(
            f"mmrl {' '.join(map(str, arguments))} ended with {done.code}\n{done.stdout}\n{done.stderr}"
        )
    return done


def weights_at(run: Path, total: int) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint after `total` steps of a run."""
    folder = run / "checkpoints" / f"step_{total:06d}"
    return {
        f"{file.stem}/{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }
