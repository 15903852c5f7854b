"""The documentation: its links lead somewhere, its configs resolve, its code runs, its tables agree with the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML

from mmrl import components
from mmrl.config import load
from mmrl.config.schema import Config, RLStage, Spec, SupervisedStage
from mmrl.generative.plan import DiffusionPlan, FlowPlan
from mmrl.generative.train import TrainSpec
from mmrl.reward import RewardSet, set_up
from mmrl.rollout import OK, SKIPPED, Prompt, Sample

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language, without the indentation of the fence."""
    found = []
    for indent, name, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if name == language:
            found.append("".join(line.removeprefix(indent) for line in body.splitlines(keepends=True)))
    return found


def files(page: Path, folder: Path) -> dict[str, str]:
    """Write every Python block that starts with `# name.py` into `folder`; returns name -> text."""
    named = {match[1]: text for text in blocks(page, "python") if (match := re.match(r"# (\w+\.py)\n", text))}
    for name, text in named.items():
        (folder / name).write_text(text, encoding="utf-8")
    return named


def headings(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor and file.suffix == ".md":
            assert anchor in headings(file), f"{page.name}: {target}: no such heading"


def complete_configs() -> Iterator[Any]:
    for page in PAGES:
        texts = [text for text in blocks(page, "yaml") if text.startswith("# complete")]
        yield from (pytest.param(page, text, id=f"{page.stem}-{n}") for n, text in enumerate(texts, start=1))


@pytest.mark.parametrize(("page", "text"), complete_configs())
def test_complete_configs_resolve(page: Path, text: str, tmp_path: Path) -> None:
    files(page, tmp_path)
    (tmp_path / "example.yaml").write_text(text, encoding="utf-8")
    assert load(str(tmp_path / "example.yaml")).stages


def test_server_configs_resolve(tmp_path: Path) -> None:
    from mmrl.rewards.remote.serve import load as load_server

    texts = [text for text in blocks(DOCS / "serving.md", "yaml") if text.startswith("# server")]
    assert texts
    for text in texts:
        (tmp_path / "rewards.yaml").write_text(text, encoding="utf-8")
        section, service = load_server(str(tmp_path / "rewards.yaml"))
        assert section == type(section)(), "the example shows the defaults"
        assert service.rewards


def test_there_are_complete_configs() -> None:
    assert len(list(complete_configs())) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for text in blocks(page, "yaml"):
        for part in text.splitlines() if text.startswith("prompts:") else [text]:
            YAML(typ="safe").load(part)


def picture(value: int, prompt: str = "a") -> Sample:
    pixels = np.full((4, 4, 3), 40, dtype=np.uint8)
    pixels[:2, :, 0] = value
    return Sample(Prompt(prompt, "a red square"), images=(pixels,))


def test_reward_function_runs(tmp_path: Path) -> None:
    text = files(DOCS / "rewards.md", tmp_path)["warm_colours.py"]
    assert text.count("\n") < 40
    reward = components.build("reward", {"name": "warm_colours.py:warm_colours", "channel": 0}, tmp_path)
    scores = RewardSet({"warm": (reward, 0.5)}).score([picture(250), picture(40), Sample(Prompt("b", "text only"))])
    assert not scores.messages
    assert scores.status[:, 0].tolist() == [OK, OK, SKIPPED]
    assert scores.values[0, 0] > scores.values[1, 0] == pytest.approx(1 / 3)


def test_reward_class_runs(tmp_path: Path) -> None:
    files(DOCS / "rewards.md", tmp_path)
    reward = components.build("reward", {"name": "contrast.py:Contrast", "limit": 0.4}, tmp_path)
    rewards = RewardSet({"contrast": (reward, 1.0)})
    rewards.check_trained()
    set_up(reward, "contrast", torch.device("cpu"))
    scores = rewards.score([picture(250), picture(40), Sample(Prompt("b", "text only"))])
    assert not scores.messages
    assert scores.status[:, 0].tolist() == [OK, OK, SKIPPED]
    assert scores.values[0, 0] > 0.1 and scores.values[1, 0] == pytest.approx(0, abs=1e-6)


def test_own_prompt_source_and_advantage_run(tmp_path: Path) -> None:
    files(DOCS / "data.md", tmp_path)
    files(DOCS / "architecture.md", tmp_path)
    source = components.build("prompts", {"name": "numbers.py:Numbers", "limit": 5}, tmp_path)
    assert len(source.load()) == 5
    margin = components.build("advantage", {"name": "margin.py:Margin", "threshold": 0.5}, tmp_path)
    from mmrl.advantage.types import Scored

    scored = Scored(reward=np.array([1.0, np.nan]), group=np.array([0, 0]))
    assert margin(scored).tolist() == [0.5, 0.0]


def schema_keys() -> dict[str, Any]:
    """Dotted key -> default (PydanticUndefined when required) of every key that a config may have."""
    found: dict[str, Any] = {}
    walk(Config, "", found)
    for stage in (SupervisedStage, RLStage):
        walk(stage, "stages.NAME.", found)
    for plan in (FlowPlan, DiffusionPlan):
        walk(plan, "stages.NAME.rollout.", found)
    walk(TrainSpec, "stages.NAME.train.", found)
    for block in ("stages", "evaluation.sampling", "stages.NAME.rollout", "stages.NAME.train"):
        del found[block]
    return found


def walk(model: type[BaseModel], prefix: str, found: dict[str, Any]) -> None:
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            walk(inner, f"{prefix}{name}.", found)
        elif field.default_factory is not None and name == "level":
            found[f"{prefix}{name}"] = "by kind"
        else:
            default = field.get_default(call_default_factory=True)
            found[f"{prefix}{name}"] = default.name if isinstance(default, Spec) else default


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, itself or None; components and mappings of sections are leaves."""
    candidates = [annotation, *(get_args(annotation) if get_origin(annotation) is not dict else ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel) and not issubclass(candidate, Spec):
            return candidate
    return None


def documented_keys() -> dict[str, str]:
    """Dotted key -> the cell of its default, from the tables whose first column is `key`."""
    found: dict[str, str] = {}
    inside = False
    for line in (DOCS / "configuration.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| key |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and (match := re.fullmatch(r"`([\w.]+)`", cells[0])):
            assert match[1] not in found, f"{match[1]} is documented twice"
            found[match[1]] = cells[1]
    return found


def test_configuration_page_lists_every_key_and_no_other() -> None:
    assert sorted(documented_keys()) == sorted(schema_keys())


def test_configuration_page_tells_the_defaults() -> None:
    documented = documented_keys()
    wrong = {}
    for key, default in schema_keys().items():
        cell = documented[key]
        if default is PydanticUndefined:
            good = cell == "required"
        elif default == "by kind":
            good = cell == "by kind"
        else:
            value = YAML(typ="safe").load(cell.strip("`"))
            good = value == (list(default) if isinstance(default, tuple) else default)
        if not good:
            wrong[key] = (cell, default)
    assert not wrong


@pytest.mark.parametrize(
    ("kind", "pages"),
    [(kind, "algorithms") for kind in ("advantage", "shaping", "selection", "steps", "weight", "surrogate", "term")]
    + [("reward", "rewards builtin_rewards judges serving"), ("prompts", "data"), ("examples", "data")],
)
def test_every_builtin_name_is_described(kind: str, pages: str) -> None:
    text = "".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in pages.split())
    for name in components.table(kind):
        if name == "function":  # what wraps a plain function; never written in a config
            continue
        assert re.search(rf"`{name}`|name: {name}\b", text), f"docs ({pages}) say nothing about {kind} '{name}'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
