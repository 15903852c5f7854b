"""Rewards: verifiable, preference, judge, remote, and their composition."""

COMPONENTS: dict[str, dict[str, str]] = {
    "reward": {
        "function": "mmrl.rewards.function:FunctionReward",
        "jpeg_compressibility": "mmrl.rewards.jpeg:JpegCompressibility",
        "jpeg_incompressibility": "mmrl.rewards.jpeg:JpegIncompressibility",
        "shapes": "mmrl.data.shapes.reward:ShapeReward",
    },
}
