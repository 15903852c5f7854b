"""A real AutoencoderKL whose weights are set so that it returns its input: pixels are the latents of a tiny model.

Eight channels carry R, G, B, -R, -G, -B, K, -K. Their mean is exactly 0 and their variance is K^2/4 (1 + O(1/K^2)), so that
the group norm divides by K/2 whatever the picture; its weight multiplies by K/2 again and its bias of 20 lifts the values
to where SiLU is the identity; the last convolution takes the bias off. The residual blocks add zero.
For values in [-1, 1] the error is below 3 / (2 K^2) of a value, 1e-4 for K = 128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

K = 128.0
LIFT = 20.0
LOG_VARIANCE = -30.0


def identity_vae(sample_size: int) -> Any:
    """An AutoencoderKL with 3 latent channels, no down-sampling, scaling 1 and shift 0."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=1,
        sample_size=sample_size,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for half in (vae.encoder, vae.decoder):
        _make_identity(half)
    with torch.no_grad():
        vae.encoder.conv_out.bias[3:] = LOG_VARIANCE
    return vae.eval()


@torch.no_grad()
def _make_identity(half: nn.Module) -> None:
    blocks: list[Any] = [module for module in half.modules() if type(module).__name__ == "ResnetBlock2D"]
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    conv_in: Any = half.conv_in
    norm: Any = half.conv_norm_out
    conv_out: Any = half.conv_out
    for layer in (conv_in, conv_out, norm):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for c in range(3):
        conv_in.weight[c, c, 1, 1] = 1.0
        conv_in.weight[3 + c, c, 1, 1] = -1.0
        norm.weight[c] = K / 2
        norm.bias[c] = LIFT
        conv_out.weight[c, c, 1, 1] = 1.0
        conv_out.bias[c] = -LIFT
    conv_in.bias[6], conv_in.bias[7] = K, -K
