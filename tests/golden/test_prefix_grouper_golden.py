"""Shared-prefix attention against the numbers of the original implementation (`data/prefix_grouper_attention.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.vlm.fast import attention
from mmrl.vlm.fast.kernels import KERNELS
from mmrl.vlm.fast.packing import Layout

GOLDEN = json.loads((Path(__file__).parent / "data" / "prefix_grouper_attention.json").read_text())


def tensor(value: Any) -> Tensor:
    if isinstance(value, dict):
        return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return torch.tensor(value, dtype=torch.float32)


@pytest.mark.parametrize("fused", [True, False])
def test_prefix_grouper_attention_and_gradients(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original pads every group to one length on the right; ours holds its real tokens alone, all prefixes first."""
    monkeypatch.setattr(attention, "choose", lambda q, bias: KERNELS["cpu" if fused else "plain"])
    inputs, outputs = GOLDEN["inputs"], GOLDEN["outputs"]
    info = inputs["group_info"]
    layout = Layout([group[0] for group in info], [group[1:] for group in info], torch.device("cpu"))
    places = [(b, i) for b, group in enumerate(info) for i in range(group[0])]
    places += [(b, i) for b, group in enumerate(info) for i in range(group[0], sum(group))]
    row, column = torch.tensor(places).unbind(1)
    assert bool(tensor(inputs["padding_mask"])[row, column].all()) and len(places) == int(
        tensor(inputs["padding_mask"]).sum()
    )
    leaves = [tensor(inputs[name]).requires_grad_() for name in "qkv"]
    # (b, heads, L, d) -> packed (T, heads, d)
    q, k, v = (x.transpose(1, 2)[row, column] for x in leaves)
    tokens, scale = layout.prefix_tokens, q.shape[-1] ** -0.5
    kp, vp = layout.prefix(k[:tokens]), layout.prefix(v[:tokens])
    out = torch.cat(
        (
            layout.prefix_attention(layout.prefix(q[:tokens]), kp, vp, scale),
            layout.suffix_attention(q[tokens:], k[tokens:], v[tokens:], kp, vp, scale),
        )
    )
    torch.testing.assert_close(out, tensor(outputs["out"])[row, column], atol=1e-5, rtol=1e-5)
    (out * tensor(inputs["loss_weights"])[row, column]).sum().backward()
    for name, leaf in zip("qkv", leaves, strict=True):
        torch.testing.assert_close(leaf.grad, tensor(outputs[f"grad_{name}"]), atol=1e-5, rtol=1e-5)
