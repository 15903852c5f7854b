"""Configs: what a user gets for good and for bad input."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mmrl.config import load
from mmrl.config.dump import differences, dump, flatten
from mmrl.config.json_schema import json_schema
from mmrl.config.source import read, shipped
from mmrl.errors import ConfigError

BASE = """
policy: {name: tiny_sd3}
stages:
  warm:
    kind: supervised
    steps: 2
    batch_size: 4
    examples: {name: shapes}
    optimizer: {lr: 1e-3}
  rl:
    kind: rl
    steps: 2
    prompts: {name: shapes, split: train}
    prompts_per_step: 2
    group_size: 4
    rollout: {num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}
    rewards:
      exact: {name: shapes, mode: exact}
      dense: {name: shapes, mode: dense, weight: 0.5}
    objective:
      advantage: {name: group, scale: group}
      surrogate: {name: clip, low: 1e-4, high: 1e-4}
    optimizer: {lr: 1e-4, eps: 1e-5}
evaluation:
  prompts: {name: shapes, split: held_out}
  sampling: {num_steps: 4}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def failure(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(path), overrides)
    return str(caught.value)


def test_a_good_config_resolves_without_weights(config: Path) -> None:
    resolved = load(str(config))
    assert [stage.name for stage in resolved.stages] == ["warm", "rl"]
    assert resolved.stages[1].section.optimizer.lr == 1e-4
    assert resolved.stages[1].rewards["dense"][1] == 0.5
    with pytest.raises(AttributeError):
        _ = resolved.policy.transformer


def test_unknown_key_names_file_line_and_nearest(config: Path) -> None:
    config.write_text(BASE.replace("group_size", "grup_size"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'grup_size')}: stages.rl.grup_size: unknown key" in message
    assert "did you mean 'group_size'" in message


def test_unknown_component_option_names_the_nearest(config: Path) -> None:
    config.write_text(BASE.replace("low: 1e-4", "lov: 1e-4"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'lov')}: stages.rl.objective.surrogate.lov" in message
    assert "did you mean 'low'" in message


def test_unknown_component_names_the_nearest_and_its_line(config: Path) -> None:
    config.write_text(BASE.replace("{name: group, scale: group}", "{name: gruop, scale: group}"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'gruop')}" in message and "did you mean 'group'" in message


def test_unknown_key_in_the_familys_own_block(config: Path) -> None:
    config.write_text(BASE.replace("num_steps: 4, sampler: {kind: flow_sde", "num_step: 4, sampler: {kind: flow_sde"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'num_step:')}: stages.rl.rollout.num_step: unknown key" in message
    assert "did you mean 'num_steps'" in message


def test_all_problems_are_listed_at_once(config: Path) -> None:
    config.write_text(
        BASE.replace("lov: 1", "lov: 1").replace("low:", "lov:").replace("{name: group,", "{name: gruop,")
    )
    assert len(failure(config).splitlines()) == 2


def test_wrong_type_and_missing_key(config: Path) -> None:
    config.write_text(
        BASE.replace("steps: 2\n    prompts", "steps: two\n    prompts").replace("    group_size: 4\n", "")
    )
    message = failure(config)
    assert "stages.rl.steps: got 'two'" in message
    assert "stages.rl.group_size: is required and missing" in message


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", "1E-4"])
def test_scientific_numbers_are_numbers(config: Path, text: str) -> None:
    config.write_text(BASE.replace("optimizer: {lr: 1e-4", f"optimizer: {{lr: {text}"))
    assert load(str(config)).stages[1].section.optimizer.lr == 1e-4
    assert load(str(config), [f"stages.rl.optimizer.lr={text}"]).stages[1].section.optimizer.lr == 1e-4


def test_override_is_used_and_remembered(config: Path) -> None:
    resolved = load(str(config), ["stages.rl.optimizer.lr=3e-5", "run.seed=7"])
    assert resolved.stages[1].section.optimizer.lr == 3e-5 and resolved.config.run.seed == 7
    assert resolved.source.where(("stages", "rl", "optimizer", "lr")) == "command line"


def test_override_with_a_misspelt_key(config: Path) -> None:
    message = failure(config, "stages.rl.optimizer.lrr=1")
    assert message.startswith("command line: stages.rl.optimizer.lrr: unknown key") and "did you mean 'lr'" in message


def test_override_that_is_none(config: Path) -> None:
    assert "is not key=value" in failure(config, "run.seed")
    assert "is a section" in failure(config, "stages.rl.optimizer=fast")


def test_override_of_a_component_name_drops_its_old_options(config: Path) -> None:
    resolved = load(str(config), ["stages.rl.objective.surrogate.name=reinforce"])
    assert type(resolved.stages[1].objective.surrogate).__name__.lower().startswith("reinforce")


def test_override_can_remove_a_stage(config: Path) -> None:
    assert [stage.name for stage in load(str(config), ["stages.warm=null"]).stages] == ["rl"]


def test_extends_merges_and_remembers_where(config: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: base.yaml\nstages:\n  rl:\n    group_size: 8\n    objective:\n      surrogate: {name: reinforce}\n"
    )
    resolved = load(str(child))
    assert resolved.stages[1].section.group_size == 8 and resolved.stages[1].section.prompts_per_step == 2
    assert resolved.source.where(("stages", "rl", "group_size")).endswith("child.yaml:4")
    assert "base.yaml" in resolved.source.where(("stages", "rl", "prompts_per_step"))


def test_extends_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "circle" in failure(tmp_path / "a.yaml")


def test_missing_and_misspelt_config() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart/generative'"):
        load("quickstart/generativ")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("policy: {name: tiny_sd3\nstages: 3\n")
    assert "broken.yaml:2" in failure(path)


def test_duplicate_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("run: {seed: 1}\nrun: {seed: 2}\n")
    assert "twice.yaml:2" in failure(path)


def test_ode_with_a_likelihood_loss(config: Path) -> None:
    config.write_text(BASE.replace("{kind: flow_sde, level: 0.7}", "{kind: ode}"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'rollout')}: stages.rl.rollout" in message
    assert "flow_sde" in message and "log-prob" in message


def test_window_outside_the_steps(config: Path) -> None:
    config.write_text(
        BASE.replace(
            "      surrogate:", "      steps: {select: {name: window, size: 9, schedule: random}}\n      surrogate:"
        )
    )
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'window')}" in message and "9" in message and "4" in message


def test_geometry_that_does_not_divide_shows_valid_settings(config: Path) -> None:
    message = failure(config, "stages.rl.updates_per_rollout=3")
    assert "2 prompts x 4 samples = 8 do not divide into 3 updates; nearest valid: 1, 2, 4" in message


def test_a_group_of_one_is_refused(config: Path) -> None:
    assert "no relative advantage" in failure(config, "stages.rl.group_size=1")


def test_dumped_config_loads_to_the_same_values(config: Path, tmp_path: Path) -> None:
    settings = dump(load(str(config)))
    again = tmp_path / "again.yaml"
    with again.open("w") as file:
        YAML().dump(settings, file)
    assert dump(load(str(again))) == settings
    assert differences(again, settings) == []
    assert flatten(settings)["stages.rl.objective.surrogate.low"] == 1e-4


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_config_resolves_and_its_dump_loads_again(name: str, tmp_path: Path) -> None:
    resolved = load(name)
    assert resolved.source.name == name
    again = tmp_path / "config.yaml"
    with again.open("w") as file:
        YAML().dump(dump(resolved), file)
    assert dump(load(str(again))) == dump(resolved)


def test_schema_knows_sections_and_components() -> None:
    schema = json.dumps(json_schema())
    for word in ("prompts_per_step", "flow_sde", "jpeg_compressibility", "max_grad_norm", "extends"):
        assert word in schema


def test_schema_accepts_what_loads(config: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(read(str(config)).tree)) == []
    assert list(validator.iter_errors(read(str(config), ["run.sed=1"]).tree))


def test_a_users_component_by_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            def brightness(samples, scale=1.0):
                return [float(sample.images[0].mean()) / 255 * scale for sample in samples]
            """
        )
    )
    config.write_text(
        BASE.replace("      dense:", "      mine: {name: 'mine.py:brightness', scale: 2.0}\n      dense:")
    )
    assert "mine" in load(str(config)).stages[1].rewards
    config.write_text(BASE.replace("      dense:", "      mine: {name: 'mine.py:brightnes'}\n      dense:"))
    assert "did you mean 'brightness'" in failure(config)
