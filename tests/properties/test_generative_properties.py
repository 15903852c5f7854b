"""What holds for every transition, packing and cut of a rollout, whatever the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrl.generative.conditioning import Ask, ConditioningCache
from mmrl.generative.noise import Noise
from mmrl.generative.packing import image_ids, pack_latents, unpack_latents
from mmrl.generative.payload import pairs_in_order
from mmrl.generative.transition import Transition, flow_transition, kl_divergence

KINDS = st.sampled_from(["flow_sde", "dance_sde", "cps"])
SHAPES = st.sampled_from([(3, 7), (2, 5, 4), (3, 2, 4, 4), (2, 2, 3, 2, 2)])
SIGMAS = torch.tensor([1.0, 0.95, 0.8, 0.5, 0.2])
SEEDS = st.integers(0, 2**31)


def take(kind: str, shape: tuple[int, ...], seed: int, **options: Any) -> tuple[Transition, dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    v, x, z = (torch.randn(shape, generator=g) for _ in range(3))
    k = torch.randint(0, 4, (shape[0],), generator=g)
    given_: dict[str, Any] = {"kind": kind, "level": 0.6, "sigma_max": 0.95, "noise": z, **options}
    return flow_transition(v, x, SIGMAS[k], SIGMAS[k + 1], **given_), {"v": v, "x": x, "k": k, "z": z}


@settings(deadline=None, max_examples=40)
@given(KINDS, SHAPES, SEEDS)
def test_scoring_a_drawn_sample_gives_the_log_prob_of_the_draw(kind: str, shape: tuple[int, ...], seed: int) -> None:
    drawn, _ = take(kind, shape, seed)
    scored, _ = take(kind, shape, seed, noise=None, x_next=drawn.x_next)
    assert torch.equal(drawn.log_prob, scored.log_prob) and drawn.log_prob.shape == shape[:1]
    assert drawn.random.all() and torch.equal(drawn.x_next, scored.x_next)
    assert all(t.dtype == torch.float32 for t in (drawn.x_next, drawn.log_prob, drawn.mean, drawn.std))


@settings(deadline=None, max_examples=40)
@given(KINDS, SHAPES, SEEDS)
def test_a_row_does_not_see_the_other_rows(kind: str, shape: tuple[int, ...], seed: int) -> None:
    whole, data = take(kind, shape, seed)
    for row in range(shape[0]):
        k = int(data["k"][row])
        one = flow_transition(
            data["v"][row : row + 1],
            data["x"][row : row + 1],
            SIGMAS[k],
            SIGMAS[k + 1],
            kind=kind,  # type: ignore[arg-type]
            level=0.6,
            sigma_max=0.95,
            noise=data["z"][row : row + 1],
        )
        torch.testing.assert_close(one.log_prob[0], whole.log_prob[row], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.x_next[0], whole.x_next[row])


@settings(deadline=None, max_examples=30)
@given(KINDS, SHAPES, SEEDS, st.sampled_from(["s2", "g2", "v"]))
def test_kl_is_zero_at_home_and_positive_elsewhere(kind: str, shape: tuple[int, ...], seed: int, norm: Any) -> None:
    p, _ = take(kind, shape, seed)
    q, _ = take(kind, shape, seed + 1)
    same = Transition(**{**vars(q), "std": p.std, "dt": p.dt, "random": p.random})
    assert not kl_divergence(p, p, norm).any()
    assert (kl_divergence(p, same, norm) > 0).all()
    torch.testing.assert_close(kl_divergence(p, same, norm), kl_divergence(same, p, norm))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_packing_is_undone_by_unpacking(batch: int, channels: int, rows: int, columns: int) -> None:
    x = torch.arange(batch * channels * 4 * rows * columns).reshape(batch, channels, 2 * rows, 2 * columns).float()
    packed = pack_latents(x)
    assert packed.shape == (batch, rows * columns, 4 * channels) and image_ids(2 * rows, 2 * columns).shape[1] == 3
    assert torch.equal(unpack_latents(packed, 2 * rows, 2 * columns), x)


def test_odd_latents_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="both sides must be even"):
        pack_latents(torch.zeros(1, 1, 3, 4))


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(1, 9))
def test_chunks_are_every_pair_once_ordered_by_step(train: list[list[bool]], size: int) -> None:
    chunks = list(pairs_in_order(torch.tensor(train), size))
    pairs = [(s, r) for c in chunks for r, (s,) in zip(c.rows.tolist(), c.steps.tolist(), strict=True)]
    assert pairs == sorted((s, r) for r, row in enumerate(train) for s, on in enumerate(row) if on)
    assert all(len(c.rows) == size for c in chunks[:-1]) and all(0 < len(c.rows) <= size for c in chunks)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True), st.integers(0, 4))
def test_noise_belongs_to_its_seed(seeds: list[int], at: int) -> None:
    at %= len(seeds)
    cpu = torch.device("cpu")
    whole, alone = Noise(seeds, (3, 4, 8), cpu), Noise([seeds[at]], (3, 4, 8), cpu)
    for _ in range(2):
        assert torch.equal(whole.draw()[at : at + 1], alone.draw())


def test_the_cache_forgets_the_oldest_text_above_its_size() -> None:
    calls: list[str] = []
    a, b, c, cpu = Ask("a"), Ask("bb"), Ask("ccc"), torch.device("cpu")

    def encode(asks: list[Ask]) -> dict[str, Tensor]:
        calls.extend(ask.text for ask in asks)
        return {"prompt": torch.tensor([[float(len(ask.text))] * 4 for ask in asks])}

    cache = ConditioningCache(encode, max_bytes=2 * 16)
    assert cache.frozen([a, b, a], cpu).tensors["prompt"].shape == (2, 4)
    cache.frozen([a], cpu)
    found = cache.frozen([c], cpu)
    assert calls == ["a", "bb", "ccc"] and found.index == {c: 0}
    cache.frozen([a], cpu)
    cache.frozen([b], cpu)
    assert calls == ["a", "bb", "ccc", "bb"] and cache.bytes == 32
