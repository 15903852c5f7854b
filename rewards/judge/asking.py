"""What every reward that asks a judge has in common."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PrivateAttr

from mmrl.reward import Reward
from mmrl.rewards.judge.chat import Chat
from mmrl.rewards.judge.endpoint import Endpoint


class AskingReward(Reward):
    """Base: a judge behind `endpoint`, asked from `setup` on."""

    licence = "that of the judge"
    deterministic = False
    endpoint: Endpoint
    """Where the judge is and how it is asked."""

    _chat: Any = PrivateAttr(default=None)
    _met: str = PrivateAttr(default="")

    def setup(self, device: torch.device) -> None:
        """Open the connection and meet the judge. Raises UserError for an endpoint that may not be asked, or does not answer."""
        chat = Chat(self.endpoint)
        self._met = chat.meet()
        self._chat = chat

    def elsewhere(self) -> str:
        """Who answered when this process met the judge: by the server's list of models, and by a reply; nothing where they do not say."""
        return self._met

    def stats(self) -> dict[str, float]:
        """See `Chat.stats`; nothing before `setup`."""
        return {} if self._chat is None else self._chat.stats()

    def stop(self) -> None:
        """See `Chat.stop`."""
        if self._chat is not None:
            self._chat.stop()


def in_own_words(task: str) -> str:
    """A task for a judge that is shown the prompt in a block. Raises ValueError where it has a place for the prompt all the same."""
    if "{prompt}" in task:
        raise ValueError(
            "task has {prompt} in it, as published prompts have, and would be sent as it stands; leave it out (the prompt is shown in a block "
            "of its own), or use unified_reward, or pair_judge with form think, flex or shares"
        )
    return task
