"""Rewards: what an author writes (`base`, `pairwise`), what a run makes of it (`scored`, `parts`, `combined`, `beside`), which model it
is (`fingerprint`), and whether it keeps its promises (`conformance` on `made_up` samples, `calibrate`; `named` on the command line)."""

from mmrl.reward.base import Failed, Graded, Need, Reward, Scope, frame_rate, lacking, rgb, set_up
from mmrl.reward.combined import RewardSet, Use, graded
from mmrl.reward.pairwise import PairwiseReward

__all__ = [
    "Failed",
    "Graded",
    "Need",
    "PairwiseReward",
    "Reward",
    "RewardSet",
    "Scope",
    "Use",
    "frame_rate",
    "graded",
    "lacking",
    "rgb",
    "set_up",
]
