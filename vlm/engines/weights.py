"""Weights as an engine reads them: safetensors in a folder, a new one for every version."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl import lora
from mmrl.vlm import export
from mmrl.vlm.train import PART, vision_parts

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy


def is_adapter(policy: VlmPolicy) -> bool:
    """Whether a LoRA on the language model is all that differs from the model that was loaded: engines put no LoRA on a vision
    tower or what follows it."""
    weights = policy.weights
    if not weights.is_lora or weights.changed:
        return False
    towers, mergers = vision_parts(policy.model)
    return not any(lora.below(name.removeprefix(f"{PART}."), (*towers, *mergers)) for name in policy.trainable())


class Versions:
    """One folder per version below `root`, or below a folder of its own that goes when the process does; the last one stays."""

    def __init__(self, root: str | None) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="mmrl-weights-") if root is None else None
        self.root = Path(self.temporary.name if self.temporary is not None else str(root)).absolute()
        self.last: Path | None = None

    def write(self, policy: VlmPolicy, version: str, adapter: bool) -> Path:
        """The adapter's files for peft, or the whole model for transformers (a LoRA merged, in the policy's dtype)."""
        folder = self.root / version
        if adapter:
            lora.write(policy.model, policy.weights.peft_configs[PART], folder)
        else:
            export.save(policy, folder)
        return folder

    def taken(self, folder: Path) -> None:
        """The engine has loaded `folder`: what was there before can go."""
        if self.last is not None and self.last != folder:
            shutil.rmtree(self.last, ignore_errors=True)
        self.last = folder
