"""Checklists: a prompt brings questions about what it shows along, which are asked in groups of their own (PEARL)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.seeding import permutation

ABOUT_MEDIA = ("fps", "size", "resized")
"""Entries of a prompt's `meta` that say something of its media, which its sub-questions share."""
KIND = "checklist"
"""`meta.kind` of a sub-question."""


@dataclass(frozen=True)
class Checklist:
    """How many sub-questions of each prompt are asked in a step, and how many samples each gets; `readable` are those of some that
    the policy can read whole (default: all)."""

    questions: int
    group_size: int
    readable: Callable[[Sequence[Prompt]], Sequence[Prompt]] = tuple

    def chosen(self, prompt: Prompt, *parts: int | str) -> list[Prompt]:
        """The sub-questions of `prompt` to be asked: a function of the prompt's id and of `parts` alone, none twice, all where
        there are no more than `questions`."""
        found = self.readable(sub_questions(prompt))
        order = permutation(len(found), KIND, prompt.id, *parts)[: self.questions]
        return [found[place] for place in sorted(order.tolist())]


def sub_questions(prompt: Prompt) -> list[Prompt]:
    """`prompt.meta["checklist"]`, a list of `{question, answer, ...}`, as prompts: number k has the id `ID/checklist/k`, the question as
    text, the answer as target, the media of `prompt`, and what else stands beside as `meta`, with `kind: checklist` and `parent: ID`.

    Empty for a prompt without one. Raises UserError for anything else.
    """
    said = prompt.meta.get("checklist")
    if said is None:
        return []
    if not isinstance(said, list | tuple):
        raise UserError(
            f"prompt '{prompt.id}': meta.checklist is {_show(said)}; expected a list of {{question: ..., answer: ...}}"
        )
    about = {key: prompt.meta[key] for key in ABOUT_MEDIA if key in prompt.meta}
    return [
        Prompt(
            id=f"{prompt.id}/checklist/{number}",
            text=question["question"],
            media=prompt.media,
            target=question["answer"],
            meta={
                **about,
                **{key: value for key, value in question.items() if key not in ("question", "answer")},
                "kind": KIND,
                "parent": prompt.id,
            },
        )
        for number, question in enumerate(_checked(one, number, prompt.id) for number, one in enumerate(said))
    ]


def check_checklists(prompts: Sequence[Prompt], look_at: int = 1000) -> list[Prompt]:
    """The sub-questions of the first `look_at` prompts, without media, or of the first prompt that has any where these have none. Raises
    UserError where no prompt has one, and for a checklist among these that cannot be read."""
    bare = (replace(prompt, media=()) for prompt in prompts)
    own = [question for prompt in prompts[:look_at] for question in sub_questions(replace(prompt, media=()))]
    if not own:
        own = next((found for prompt in bare if (found := sub_questions(prompt))), [])
    if not own:
        raise UserError(
            f"none of the {len(prompts)} prompts has sub-questions (meta.checklist: a list of {{question: ..., answer: ...}}), which "
            "curriculum.checklist asks"
        )
    return own


def _checked(one: Any, number: int, prompt: str) -> Mapping[str, Any]:
    where = f"prompt '{prompt}': meta.checklist[{number}]"
    if not isinstance(one, Mapping):
        raise UserError(f"{where} is {_show(one)}; expected {{question: ..., answer: ...}}")
    question = one.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question is {_show(question)}; expected a text")
    if one.get("answer") is None:
        raise UserError(f"{where} has no answer, which the rewards compare with")
    return one


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
