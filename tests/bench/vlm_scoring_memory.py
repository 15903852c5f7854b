"""Peak memory of scoring answers, forward and backward: log-probs in chunks against the whole (B, T, V) logits.

    python tests/bench/vlm_scoring_memory.py [--vocabulary 150000] [--tokens 4096] [--hidden 256] [--device cpu]

Each way runs in a process of its own. Memory is what the process gained over its state with inputs and gradients of the
output projection in place: resident set on the CPU, allocated memory on a GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=("plain", "chunks"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    rows = {}
    for way in ("plain", "chunks"):
        out = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way], check=True, capture_output=True, text=True
        )
        rows[way] = json.loads(out.stdout.splitlines()[-1])
        print(
            f"{way:>6}: {rows[way]['mib']:8.0f} MiB  {rows[way]['seconds']:6.1f} s  mean log-prob {rows[way]['mean']:.6f}"
        )
    print(f" ratio: {rows['plain']['mib'] / rows['chunks']['mib']:.1f} to 1")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Gain in MiB, seconds, and the mean log-prob, which shows that both ways computed the same."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, generator=g).to(options.device).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.hidden, generator=g) / 8).to(options.device).requires_grad_()
    targets = torch.randint(0, options.vocabulary, (options.tokens,), generator=g).to(options.device)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    way = plain if options.way == "plain" else chunks
    way(hidden[:2], weight, targets[:2], options.chunk).sum().backward()  # libraries load, workspaces are made
    before, started = peak(options.device, reset=True), time.perf_counter()
    log_prob = way(hidden, weight, targets, options.chunk)
    log_prob.sum().backward()
    gained = peak(options.device) - before
    return {"mib": gained / 2**20, "seconds": time.perf_counter() - started, "mean": float(log_prob.mean())}


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    logits = (hidden @ weight.t()).float()[None]  # (B, T, V)
    return logits.log_softmax(-1).gather(-1, targets[None, :, None]).squeeze(-1)


def chunks(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    from mmrl.vlm.fast.log_prob import linear_log_prob

    return linear_log_prob(hidden, weight, targets, chunk=chunk)[0]


def peak(device: str, reset: bool = False) -> int:
    """Bytes at the highest so far; with `reset` (GPU only) of what is allocated now."""
    if device.startswith("cuda"):
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    # the highest resident set of a fresh process, which the warm-up cannot have raised beyond the inputs' own size
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
