"""What writes the answers of rollouts: the policy itself, or vLLM beside it. See docs/engines.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmrl.vlm.engines.base import Own
from mmrl.vlm.engines.colocated import Vllm
from mmrl.vlm.engines.server import VllmServer

EngineChoice = Annotated[Own | VllmServer | Vllm, Field(discriminator="kind")]
"""The `engine:` block of a policy, told apart by `kind`."""
