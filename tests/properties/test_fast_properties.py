"""What must hold for any prompts, group sizes and lengths."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.vlm.fast.log_prob import linear_log_prob
from mmrl.vlm.fast.score import score
from tests.unit.fast_models import answer, prompt, tiny

MODEL = tiny("qwen3_vl")
few = settings(max_examples=12, deadline=None)


@few
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([None, 2, 4]), st.lists(st.integers(0, 5), min_size=1, max_size=4)),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_groups_answers_and_order_do_not_matter_to_each_other(shapes: list[tuple[int, int | None, list[int]]]) -> None:
    """All groups at once, each answer alone, and all in another order: the same log-probs."""
    groups = []
    for i, (text, side, lengths) in enumerate(shapes):
        parts: list[int | tuple[str, int, int, int]] = [text] if side is None else [text, ("image", 1, side, 4), 2]
        groups.append((prompt("qwen3_vl", parts, i), [answer(n, 10 * i + j) for j, n in enumerate(lengths)]))
    with torch.no_grad():
        together = score(MODEL, groups).log_prob
        alone = [score(MODEL, [(p, [a])]).log_prob[0] for p, answers in groups for a in answers]
        turned = score(MODEL, [(p, answers[::-1]) for p, answers in groups[::-1]]).log_prob[::-1]
    for a, b, c in zip(together, alone, turned, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)
        assert bool((a <= 0).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 10), st.floats(0.2, 3), st.integers(0, 1000))
def test_log_probs_do_not_depend_on_the_chunk(
    n: int, vocabulary: int, chunk: int, temperature: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, 3, generator=g).double(), torch.randn(vocabulary, 3, generator=g).double()
    targets = torch.randint(0, vocabulary, (n,), generator=g)
    whole = linear_log_prob(hidden, weight, targets, temperature, 512)
    parts = linear_log_prob(hidden, weight, targets, temperature, chunk)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    assert bool((whole[0] <= 1e-12).all()) and bool((whole[1] >= -1e-12).all())
    # adding one constant to all logits changes nothing
    shifted = linear_log_prob(
        torch.cat((hidden, torch.ones(n, 1)), 1),
        torch.cat((weight, torch.full((vocabulary, 1), 2.5)), 1),
        targets,
        temperature,
    )
    torch.testing.assert_close(shifted[0], whole[0])
