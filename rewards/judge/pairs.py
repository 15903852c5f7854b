"""Pairwise judges behind an endpoint: who of two candidates is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.reward import Failed
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rewards.judge.asking import AskingReward
from mmrl.rewards.judge.chat import Readable
from mmrl.rewards.judge.completion import JudgeError
from mmrl.rewards.judge.identity import prompt_hash
from mmrl.rewards.judge.kept import Reply
from mmrl.rewards.judge.question import GUARD, pair
from mmrl.rewards.judge.verdict import answered_winner, flex, json_object, winner
from mmrl.rollout import Sample

SHARE = {1: 1.0, 2: 0.0, 0: 0.5}
SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["1", "2", "tie"]}},
    "required": ["reason", "winner"],
    "additionalProperties": False,
}


class PairJudge(AskingReward, PairwiseReward):
    """Win rate by a vision-language judge that sees two candidates at a time.

    `form`: `schema` asks for JSON with the winner; `think` reads `<answer>Image 1 is better</answer>` (UnifiedReward-Think), `flex` its JSON
    with a winner per category (UnifiedReward-Flex), of which `category_weight` says how much the categories count beside the overall winner.
    The published prompts of those checkpoints go into `task`.
    """

    task: str = "Decide which candidate fulfils the prompt better, in content and in quality."
    form: Literal["schema", "think", "flex"] = "schema"
    category_weight: float = 0.5

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Of the code, and the hash of everything that the judge is told beside the sample."""
        return f"1, prompt {prompt_hash(type(self).__name__, GUARD, self.model_dump(mode='json', exclude={'endpoint', 'cache', 'max_pairs', 'orders', 'unreadable'}))}"

    def who(self) -> str | None:
        """The judge as its replies name it."""
        name: str | None = None if self._chat is None else self._chat.identity.name()
        return name

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        """One verdict per pair; an answer that cannot be read is asked for once more."""
        options: dict[str, Any] = {"schema": SCHEMA} if self.form == "schema" else {}
        questions = [pair(first, second, self._task, self.endpoint) for first, second in pairs]
        readable: list[Readable] = [lambda reply: self._read(reply) is not None] * len(pairs)
        found = [self._read(reply) for reply in self._chat.ask_all(questions, readable, **options)]
        again = [at for at, value in enumerate(found) if value is None]
        anew = [self._chat.forget(questions[at]) for at in again]
        for at, reply in zip(again, self._chat.ask_all(anew, readable[: len(again)], **options), strict=True):
            found[at] = self._read(reply)
        return found

    @property
    def _task(self) -> str:
        if self.form != "schema":
            return self.task
        return f'{self.task} Answer with JSON: {{"reason": "...", "winner": "1", "2" or "tie"}}.'

    def _read(self, reply: Reply | JudgeError) -> Verdict:
        if isinstance(reply, JudgeError):
            return Failed(str(reply))
        if self.form == "think":
            who = answered_winner(reply.text)
            return None if who is None else SHARE[who]
        if self.form == "flex":
            return self._flex(reply.text)
        named = str((json_object(reply.text) or {}).get("winner", ""))
        who = {"1": 1, "2": 2, "tie": 0}.get(named, winner(named))
        return None if who is None else SHARE[who]

    def _flex(self, text: str) -> Verdict:
        found = flex(text)
        if found is None:
            return None
        overall, categories = found
        if not categories:
            return SHARE[overall]
        own = sum(SHARE[who] for who in categories.values()) / len(categories)
        return (1 - self.category_weight) * SHARE[overall] + self.category_weight * own
