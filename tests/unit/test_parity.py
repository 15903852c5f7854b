"""The start-up check stops a run whose replay is not its rollout, and says where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_policy import FakeGroup, Ones, Prompts, ToyPolicy, gradients, stage

from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.vogue import Vogue
from mmrl.config import load
from mmrl.distributed import Group
from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.rollout import Chunk, Prompt, Rollout
from mmrl.stages.rl import RLWork


@pytest.fixture(scope="module")
def work() -> RLWork:
    torch.set_num_threads(1)
    small = ["stages.warm=null", "stages.rl.prompts_per_step=2", "stages.rl.group_size=3", "policy.heads=1"]
    resolved = load("quickstart/generative", small)
    resolved.policy.load(torch.device("cpu"))
    resolved.policy.prepare(resolved.stages[0].train, True)
    return RLWork(resolved.stages[0], resolved.policy, Group("cpu"), 0, lambda text: None)


def test_an_honest_replay_passes(work: RLWork) -> None:
    next(work.updates(0, Meter()))
    assert work.parity_checked


def test_a_replay_that_differs_stops_the_run_and_names_the_step(work: RLWork, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = type(work.policy).replay

    def crooked(policy, rollout, chunk, view="original", model="policy"):
        out = honest(policy, rollout, chunk, view, model)
        out.log_prob = out.log_prob + 1e-3 * (chunk.steps == 2)
        return out

    monkeypatch.setattr(type(work.policy), "replay", crooked)
    work.parity_checked = False
    with pytest.raises(RunError, match=r"\|ratio - 1\| = 1.00e-03 at sample \d, step 2 of rank 0"):
        next(work.updates(1, Meter()))


# ---- samplers that are not exact


class Rough(ToyPolicy):
    """Its sampler says log-probs that are `noise` off, up and down in turn, those of a replay being exact."""

    exact_log_probs = False

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def rollout(self, *args: Any) -> Rollout:
        found = super().rollout(*args)
        sign = torch.ones(found.mask.shape).cumsum(1) % 2 * 2 - 1
        found.log_prob += self.noise * sign * found.mask
        return found


def run(policy: ToyPolicy, objective: Objective | None = None, **options: Any) -> tuple[dict[str, float], list[str]]:
    """Metrics of the first step, and what was said."""
    said: list[str] = []
    own = stage(objective or Objective(DrAdvantage()), **options)
    own.parity_tolerance = 0.02
    meter = Meter()
    gradients(policy, RLWork(own, policy, FakeGroup(), 7, said.append).updates(0, meter))  # type: ignore[arg-type]
    return meter.reduce(FakeGroup()), said


def test_old_log_probs_are_replayed_where_the_sampler_is_rough() -> None:
    metrics, said = run(Rough(0.015))
    assert metrics["ratio"] == 1 and metrics["ratio_deviation"] == 0
    assert any("mean |ratio - 1| = 1.5e-02 (allowed 2e-02); the largest is 1.5e-02" in line for line in said)
    metrics, _ = run(Rough(0.015), old_log_probs="rollout")
    assert metrics["ratio_deviation"] == pytest.approx(0.015, rel=0.02)


def test_an_exact_sampler_is_replayed_only_when_asked() -> None:
    for mode, extra in (("auto", 0), ("rollout", 0), ("replay", 5)):
        policy = ToyPolicy()
        run(policy, old_log_probs=mode)
        blind = [replay for replay in policy.replays if not replay[2]]
        assert len(blind) == 1 + extra  # the start-up check, and 24 samples in micro-batches of 5


def test_the_replay_is_cut_as_the_updates_are() -> None:
    policy = Rough(0.0)
    cut: dict[bool, list[list[int]]] = {True: [], False: []}
    honest = policy.replay

    def watched(rollout: Rollout, chunk: Chunk, *rest: Any) -> Any:
        cut[torch.is_grad_enabled()].append(chunk.rows.tolist())
        return honest(rollout, chunk, *rest)

    policy.replay = watched  # type: ignore[method-assign]
    run(policy, updates_per_rollout=3)
    assert cut[False][1:] == cut[True] and len(cut[True]) == 6


def test_a_mean_that_is_too_far_off_stops_the_run() -> None:
    with pytest.raises(
        RunError, match=r"\|ratio - 1\| = 2\.99e-02 on average, 3\.\d\de-02 at most, at sample \d, step \d of rank 0"
    ):
        run(Rough(0.03))


def test_parity_looks_through_the_view_of_a_draw() -> None:
    """All samples are drawn through another view: what was said of that view is what is checked."""
    objective = Objective(DrAdvantage(), shaping=(Vogue(),))

    class Pictures(Prompts):
        """Every prompt has a picture, so every sample looks different through the view."""

        def load(self) -> list[Prompt]:
            return [prompt for prompt in Prompts(30).load() if prompt.media]

    metrics, said = run(ToyPolicy(), objective, prompts=Pictures())
    assert metrics["ratio_deviation"] < 1e-6 and any("max |ratio - 1|" in line for line in said)

    class Wrong(ToyPolicy):
        """Its rollouts are off under the view that they were drawn in."""

        def rollout(self, *args: Any) -> Rollout:
            found = super().rollout(*args)
            found.log_prob += 0.1 * found.mask
            return found

    with pytest.raises(RunError, match="start-up parity"):
        run(Wrong(), objective, prompts=Pictures())


CLIP_SHARE = ("clip_low", "clip_high")


@pytest.mark.parametrize(("scoring", "tokens"), [("packed", 48), ("padded", 12)])
def test_half_precision_clips_nothing_before_the_first_update(scoring: str, tokens: int) -> None:
    """GSPO's range is far below the rounding of a bfloat16 sampler, which would clip many samples by noise alone."""
    text = ["policy.dtype=bfloat16", "stages.rl.prompts_per_step=3", "stages.rl.group_size=4", "stages.warm=null"]
    text += [
        "stages.rl.objective.surrogate={name: gspo}",
        "stages.rl.objective.aggregate=seq_mean_token_mean",
        "stages.rl.objective.terms=[]",
        "evaluation=null",
    ]
    text += [f"policy.scoring={scoring}", f"stages.rl.rollout.max_new_tokens={tokens}"]
    text += ["stages.rl.objective.selection.name=all", "stages.rl.objective.advantage={name: group, scale: group}"]
    shares = {}
    for mode in ("auto", "rollout"):
        resolved = load("quickstart/vlm", [*text, f"stages.rl.old_log_probs={mode}"])
        assert resolved.stages[0].parity_tolerance == 0.02
        resolved.policy.load(torch.device("cpu"))
        resolved.policy.prepare(resolved.stages[0].train, True)
        resolved.stages[0].rewards = {"letters": (Letters(), 1.0)}
        said: list[str] = []
        work, meter = RLWork(resolved.stages[0], resolved.policy, Group("cpu"), 0, said.append), Meter()
        for loss in next(work.updates(0, meter)) or ():
            loss.backward()
        metrics = meter.reduce(Group("cpu"))
        shares[mode] = sum(metrics[key] for key in CLIP_SHARE)
        assert any(line.startswith("start-up parity: mean |ratio - 1|") for line in said)
    assert shares["auto"] == 0 < 0.04 < shares["rollout"]


class Letters(Ones):
    """How many different letters there are."""

    def score(self, samples: Any) -> list[float]:
        return [len(set(sample.text)) / 40 for sample in samples]
