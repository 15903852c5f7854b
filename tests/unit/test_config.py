"""Configs: what a user gets for good and for bad input."""

from __future__ import annotations

import copy
import io
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML

from mmrl import components
from mmrl.catalogue import about, catalogue
from mmrl.check import check_media
from mmrl.config import load
from mmrl.config.dump import differences, dump, flatten
from mmrl.config.json_schema import json_schema
from mmrl.config.source import read, shipped
from mmrl.errors import ConfigError, UserError
from mmrl.terminal import show_table

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


EVERYTHING = """
policy: {name: tiny_qwen3vl, dtpe: float32}
runn: {seed: 1}
stages:
  rl:
    kind: rl
    stps: 2
    prompts:
      name: puzzles
      numbr: 40
      mixture:
        - {kind: jigsaw, level: 9, sise: 2}
        - {kind: jigsw}
        - {kind: maze, weight: -1, level: top}
      pictures: {name: folder, pth: x}
      split: {part: tran}
    prompts_per_step: 2
    group_size: four
    rollout: {max_new_token: 8}
    train: {mode: loar}
    rewards:
      right: {name: puzle}
      well: {name: puzzle, mode: exct, weight: heavy}
    objective:
      advantage: {name: group, scale: grup}
      shaping: [{name: clamp, mx: 2}]
      steps: {select: {size: 3}}
      surrogate: {name: clip, low: abc}
      terms: [{name: kl, coef: 0.1, estimator: k9}]
    optimizer: {lr: 1e-4, betas: [0.9]}
  sft:
    kind: supervisd
    steps: 2
    examples: {name: chat, path: nothing.jsonl}
evaluation:
  prompts: {name: puzzles, mixture: []}
  sampling: {temprature: 0}
"""

TOLD = [
    ("policy:", "policy.dtpe: unknown key 'dtpe'; did you mean 'dtype'?"),
    ("runn:", "runn: unknown key 'runn'; did you mean 'run'?"),
    ("stps", "stages.rl.stps: unknown key 'stps'; did you mean 'steps'?"),
    ("numbr", "stages.rl.prompts.numbr: unknown key 'numbr'; did you mean 'number'?"),
    ("level: 9", "stages.rl.prompts.mixture.0.level: puzzle 'jigsaw' has no level 9 (there: 1: 2 x 2 tiles"),
    ("sise", "stages.rl.prompts.mixture.0.sise: unknown key 'sise'; did you mean 'size'?"),
    ("jigsw", "stages.rl.prompts.mixture.1.kind: unknown puzzle 'jigsw'; did you mean 'jigsaw'?"),
    ("maze", "stages.rl.prompts.mixture.2.weight: got -1; input should be greater than 0"),
    ("maze", "stages.rl.prompts.mixture.2.level: got 'top'; input should be a valid integer, unable to parse string as an "
             "integer or expected a list, [...]"),
    ("pth", "stages.rl.prompts.pictures.pth: unknown key 'pth'; did you mean 'path'?"),
    ("tran}", "stages.rl.prompts.split.part: got 'tran'; input should be 'all', 'train', "),
    ("group_size", "stages.rl.group_size: got 'four'; input should be a valid integer"),
    ("max_new", "stages.rl.rollout.max_new_token: unknown key 'max_new_token'; did you mean 'max_new_tokens'?"),
    ("loar", "stages.rl.train.mode: got 'loar'; input should be 'full' or 'lora'; did you mean 'lora'?"),
    ("puzle", "stages.rl.rewards.right.name: unknown reward 'puzle'; did you mean 'puzzle'?"),
    ("exct", "stages.rl.rewards.well.mode: got 'exct'"),
    ("heavy", "stages.rl.rewards.well.weight: got 'heavy'; input should be a valid number"),
    ("grup", "stages.rl.objective.advantage.scale: got 'grup'"),
    ("mx:", "stages.rl.objective.shaping.0.mx: unknown key 'mx'; did you mean 'max'?"),
    ("select", "stages.rl.objective.steps.select.name: is required and missing"),
    ("abc", "stages.rl.objective.surrogate.low: got 'abc'; input should be a valid number"),
    ("k9", "stages.rl.objective.terms.0.estimator: got 'k9'"),
    ("betas", "stages.rl.optimizer.betas.1: is required and missing"),
    ("supervisd", "stages.sft.kind: got 'supervisd'; expected one of direct, preference, rl, supervised; did you mean 'supervised'?"),
    ("nothing", "stages.sft.examples: no file "),
    ("mixture: []", "evaluation.prompts.mixture: the mixture is empty"),
    ("tempr", "evaluation.sampling.temprature: unknown key 'temprature'; did you mean 'temperature'?"),
]  # fmt: skip


def test_everything_that_is_wrong_is_told_at_once_each_at_its_own_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(EVERYTHING)
    found = failure(path).splitlines()
    for written, message in TOLD:
        start = f"{path}:{line_of(path, written)}: {message}"
        assert [line for line in found if line.startswith(start)], start
    assert len(found) == len(TOLD)


def test_parts_are_checked_and_data_is_opened_beside_what_cannot_be_built(config: Path) -> None:
    config.write_text(
        BASE.replace("{name: shapes, split: train}", "{name: txt, path: none.txt}")
        .replace("group_size: 4", "group_size: 1")
        .replace("mode: exact", "mode: exct")
        .replace("examples: {name: shapes}", "examples: {name: folder, path: none}")
    )
    message = failure(config)
    assert "stages.rl.rewards.exact.mode: got 'exct'" in message
    assert "stages.rl.prompts: no file" in message and "stages.warm.examples: no folder" in message
    config.write_text(config.read_text().replace("mode: exct", "mode: exact"))
    assert "stages.rl.group_size: a group of 1" in failure(config) and "no file" in failure(config)


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
    assert resolved.source.where(("stages", "rl", "optimizer", "lr")) == "command line: stages.rl.optimizer.lr=3e-5"


def test_override_with_a_misspelt_key(config: Path) -> None:
    message = failure(config, "stages.rl.optimizer.lrr=1")
    assert message.startswith("command line: stages.rl.optimizer.lrr=1: unknown key") and "did you mean 'lr'" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.rl.objective.surrogate.low=abc", "got 'abc'; input should be a valid number"),
        ("stages.rl.objective.surrogate={name: clip, lov: 1}", "stages.rl.objective.surrogate.lov: unknown key 'lov'"),
        ("stages.rl.objective.advantage.name=grup", "unknown advantage 'grup'; did you mean 'group'?"),
        ("stages.rl.rewards.new={name: shapes, mode: x}", "stages.rl.rewards.new.mode: got 'x'"),
        (
            "stages.rl.prompts={name: puzzles, mixture: [{kind: maze, siz: 1}]}",
            "stages.rl.prompts.mixture.0.siz: unknown key",
        ),
        ("stages.rl.prompts.split.held_out=2", "got 2; input should be less than 1"),
        ("stages.rl.group_size=1", "a group of 1 has no relative advantage"),
        ("stages.rl.curriculum.refil.low=1", "stages.rl.curriculum.refil: unknown key 'refil'; did you mean 'refill'?"),
    ],
)
def test_a_wrong_value_from_the_command_line_is_blamed_on_it(config: Path, override: str, message: str) -> None:
    config.write_text(
        BASE.replace("prompts: {name: shapes, split: train}", "prompts: {name: shapes, split: {part: train}}")
    )
    assert failure(config, override).startswith(f"command line: {override}: {message}")


def test_a_group_of_one_is_compared_with_what_is_remembered(config: Path) -> None:
    one = ["stages.rl.group_size=1", "stages.rl.objective.advantage={name: per_prompt_history}"]
    assert load(str(config), one).stages[1].section.group_size == 1


def test_a_section_that_is_wrong_names_the_other_places_it_comes_from(config: Path, tmp_path: Path) -> None:
    config.write_text(
        BASE.replace("{name: shapes, split: train}", "{name: shapes, split: {part: train, held_out: 0.7}}")
    )
    line = line_of(config, "held_out: 0.7")
    message = failure(config, "stages.rl.prompts.split.validation=0.4")
    assert (
        f"base.yaml:{line} (and command line: stages.rl.prompts.split.validation=0.4): stages.rl.prompts.split: "
        "held_out 0.7 + validation 0.4 leave nothing to train on" in message
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nstages:\n  rl:\n    prompts: {split: {validation: 0.4}}\n")
    assert f"base.yaml:{line} (and {child}:4): stages.rl.prompts.split: held_out" in failure(child)


def test_what_comes_from_a_base_is_blamed_on_its_file(config: Path, tmp_path: Path) -> None:
    config.write_text(BASE.replace("low: 1e-4", "low: abc"))
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nstages: {rl: {objective: {surrogate: {hihg: 1}}}}\n")
    message = failure(child)
    assert f"{config}:{line_of(config, 'abc')}: stages.rl.objective.surrogate.low: got 'abc'" in message
    assert f"{child}:2: stages.rl.objective.surrogate.hihg: unknown key 'hihg'; did you mean 'high'?" in message


def test_all_wrong_overrides_are_told(config: Path) -> None:
    assert len(failure(config, "run.seed", "run.name=[1", "stages.rl.optimizer.lr.x=1").splitlines()) == 3


def test_a_config_without_a_policy_names_the_file(config: Path) -> None:
    config.write_text(BASE.replace("policy: {name: tiny_sd3}", ""))
    assert failure(config).startswith(f"{config}: policy: is required and missing")


def test_override_that_is_none(config: Path) -> None:
    assert "is not key=value" in failure(config, "run.seed")
    assert "is a section" in failure(config, "stages.rl.optimizer=fast")


def test_override_of_a_component_name_drops_its_old_options(config: Path) -> None:
    resolved = load(str(config), ["stages.rl.objective.surrogate.name=reinforce"])
    assert type(resolved.stages[1].objective.surrogate).__name__.lower().startswith("reinforce")


def test_override_of_a_kind_drops_its_old_options(config: Path) -> None:
    config.write_text(BASE.replace("flow_sde, level: 0.7", "flow_sde, level: 1.2"))
    resolved = load(str(config), ["stages.rl.rollout.sampler.kind=cps"])
    assert resolved.stages[1].plan.sampler.level == 0.8
    resolved = load(str(config), ["stages.rl.rollout.sampler.kind=flow_sde"])
    assert resolved.stages[1].plan.sampler.level == 1.2


def test_a_reward_keeps_its_weight_under_another_name(config: Path, tmp_path: Path) -> None:
    resolved = load(str(config), ["stages.rl.rewards.dense.name=jpeg_compressibility"])
    assert resolved.stages[1].rewards["dense"][1] == 0.5
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nstages: {rl: {rewards: {dense: {name: jpeg_compressibility}}}}\n")
    resolved = load(str(child))
    assert resolved.stages[1].rewards["dense"][1] == 0.5
    path = ("stages", "rl", "rewards", "dense")
    assert "base.yaml" in resolved.source.where((*path, "weight")) and "child.yaml" in resolved.source.where(path)
    assert ("mode" not in read(str(child)).tree["stages"]["rl"]["rewards"]["dense"]) and (
        *path,
        "mode",
    ) not in resolved.source.origin
    child.write_text("extends: base.yaml\nstages: {rl: {rewards: {dense: {name: jpeg_compressibility, weight: 2}}}}\n")
    assert load(str(child)).stages[1].rewards["dense"][1] == 2


def test_extends_with_another_kind_drops_the_old_options(config: Path, tmp_path: Path) -> None:
    config.write_text(BASE.replace("flow_sde, level: 0.7", "flow_sde, level: 1.2"))
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nstages: {rl: {rollout: {sampler: {kind: dance_sde}}}}\n")
    plan = load(str(child)).stages[1].plan
    assert (plan.sampler.level, plan.num_steps) == (0.3, 4)


def test_an_option_called_kind_is_only_an_option(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def noise(samples, kind='a', scale=1.0):\n    return [scale] * len(samples)\n")
    config.write_text(
        BASE.replace("      dense:", "      mine: {name: 'mine.py:noise', kind: b, scale: 2.0}\n      dense:")
    )
    tree = read(str(config), ["stages.rl.rewards.mine.kind=c"]).tree
    assert tree["stages"]["rl"]["rewards"]["mine"] == {"name": "mine.py:noise", "kind": "c", "scale": 2.0}


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


@pytest.mark.parametrize("written", ["", "3", "{a: b}", "[1]"])
def test_extends_that_names_no_config(tmp_path: Path, written: str) -> None:
    (tmp_path / "a.yaml").write_text(f"run: {{seed: 1}}\nextends: {written}\n")
    assert "a.yaml:2: extends: got" in failure(tmp_path / "a.yaml")


def test_a_file_can_remove_what_its_base_has(config: Path, tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nstages: {warm: null}\n")
    assert [stage.name for stage in load(str(tmp_path / "child.yaml")).stages] == ["rl"]


def test_missing_and_misspelt_config() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart/generative'"):
        load("quickstart/generativ")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("policy: {name: tiny_sd3\nstages: 3\n")
    assert "broken.yaml:2" in failure(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("run: {seed: 1}\npolicy: {name: a\x01b}\n", "odd.yaml:2: not valid YAML: unprintable character"),
        ("run: *missing\n", "odd.yaml:1: not valid YAML: found undefined alias"),
        ("%YAML 9.9\n---\nrun: 1\n", "odd.yaml:1: not valid YAML"),
        ("run: {seed: 2024-13-45}\n", "odd.yaml: not valid YAML: month must be"),
        ("run: {<<: 3}\n", "odd.yaml:1: not valid YAML: expected a mapping"),
    ],
)
def test_what_is_not_yaml_names_file_and_line(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert place in failure(path)


def test_override_that_is_not_yaml(config: Path) -> None:
    for text in ("[1", "a\x01b", "2024-13-45"):
        assert failure(config, f"run.name={text}").startswith(f"command line: run.name={text}: cannot read the value")


def test_yaml_merge_keys_are_merged(config: Path) -> None:
    config.write_text(
        BASE.replace("optimizer: {lr: 1e-3}", "optimizer: &adam {lr: 1e-3, weight_decay: 0.5}").replace(
            "optimizer: {lr: 1e-4, eps: 1e-5}", "optimizer: {<<: *adam, lr: 1e-4}"
        )
    )
    resolved = load(str(config))
    optimizer = resolved.stages[1].section.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 0.5)
    line = line_of(config, "*adam")
    assert resolved.source.where(("stages", "rl", "optimizer", "weight_decay")).endswith(f"base.yaml:{line}")


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


@pytest.mark.parametrize(
    ("rollout", "selected", "words"),
    [
        ("{num_steps: 4, sampler: {kind: cps}}", "{name: window, size: 1, range: [3, 4]}", ("steps 3,", "steps 0-2")),
        ("{num_steps: 1, sampler: {kind: cps}}", "{name: all}", ("none has a log-prob", "num_steps")),
        (
            "{num_steps: 4, sampler: {kind: cps}}",
            "{name: window, size: 1, every: 1, range: [2, 4]}",
            ("step 2 of the",),
        ),
    ],
)
def test_steps_without_a_log_prob_cannot_be_all_that_is_trained(
    config: Path, rollout: str, selected: str, words: tuple[str, ...]
) -> None:
    config.write_text(
        BASE.replace("{num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}", rollout).replace(
            "      surrogate:", f"      steps: {{select: {selected}}}\n      surrogate:"
        )
    )
    message = failure(config)
    assert f"base.yaml:{line_of(config, 'select')}: stages.rl.objective.steps.select: step" in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("number", ["2", "'2'"])
def test_number_of_processes_is_read_as_a_number(config: Path, number: str) -> None:
    config.write_text(f"run: {{num_processes: {number}}}\n" + BASE)
    assert load(str(config)).config.run.num_processes == 2
    assert "8 samples per step cannot feed 9 processes" in failure(config, "run.num_processes='9'")
    config.write_text(f"run: null\n{BASE}")
    assert "run: got None" in failure(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", ".inf"), ("lr", "0"), ("lr", ".nan"), ("betas", "[0.9, 1.0]"), ("betas", "[-0.1, 0.9]"), ("eps", "0"),
     ("weight_decay", ".inf")],
)  # fmt: skip
def test_optimizer_numbers_out_of_bounds(config: Path, key: str, value: str) -> None:
    assert failure(config, f"stages.rl.optimizer.{key}={value}").startswith(f"command line: stages.rl.optimizer.{key}")


@pytest.mark.parametrize("name", ["a b", "a/b", "a.b", "ä", "''"])
def test_names_of_stages(config: Path, name: str) -> None:
    config.write_text(BASE.replace("  warm:", f"  {name}:"))
    message = failure(config)
    assert f"base.yaml:{line_of(config, f'  {name}:')}: stages." in message and "letters, digits, _ and -" in message


def test_warm_up_must_end_before_the_stage(config: Path) -> None:
    message = failure(config, "stages.rl.optimizer.warmup_steps=4", "stages.rl.updates_per_rollout=2")
    assert "command line: stages.rl.optimizer.warmup_steps=4: 4 steps of warm-up" in message
    assert "4 optimizer steps (2 steps x 2 updates); use 0 to 3" in message
    assert "use 0 to 1" in failure(config, "stages.warm.optimizer.warmup_steps=2")
    load(str(config), ["stages.rl.optimizer.warmup_steps=3", "stages.rl.updates_per_rollout=2"])


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [("{name: clip, low: 1e-4, high: 2e-4}", 5e-5), ("{name: clip}", 1e-4), ("{name: reinforce}", 1e-4)],
)
def test_parity_tolerance_stays_inside_the_clip_range(config: Path, surrogate: str, expected: float) -> None:
    overrides = [f"stages.rl.objective.surrogate={surrogate}"]
    stage = load(str(config), overrides).stages[1]
    assert stage.parity_tolerance == expected and stage.section.parity_tolerance is None
    assert load(str(config), [*overrides, "stages.rl.parity_tolerance=1e-6"]).stages[1].parity_tolerance == 1e-6


def test_parity_tolerance_wider_than_the_clip_range(config: Path) -> None:
    message = failure(config, "stages.rl.parity_tolerance=1e-3")
    assert message.startswith(
        "command line: stages.rl.parity_tolerance=1e-3: 0.001 is wider than the clip range 0.0001"
    )


def test_a_policy_can_refuse_a_train_block(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, train: object) -> None:
        raise ValueError("no such part; it has: transformer")

    monkeypatch.setattr(components.resolve("policy", "tiny_sd3"), "check_train", refuse, raising=False)
    assert "stages.warm.train: no such part" in failure(config)


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


@pytest.mark.parametrize("name", list(shipped()))
def test_schema_accepts_every_shipped_file_as_written(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tree = YAML(typ="safe").load(shipped()[name].read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(tree)) == []
    for path in (
        ("policy",),
        ("stages", "rl"),
        ("stages", "rl", "rollout"),
        ("stages", "rl", "objective", "surrogate"),
    ):
        wrong = copy.deepcopy(tree)
        node = wrong
        for key in path:
            node = node.get(key) if node is not None else None
        if node is not None:
            node["mispelt"] = 1
            assert list(validator.iter_errors(wrong)), path


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("extends: base.yaml", True),
        ("stages: {rl: {group_size: 8}}", True),
        ("stages: {warm: null}", True),
        ("stages: {rl: {group_sise: 8}}", False),
        ("stages: {rl: {rollout: {sampler: {levl: 1}}}}", False),
        ("stages: {rl: {objective: {surrogate: {name: clip, lov: 1}}}}", False),
        ("stages: {rl: {objective: {surrogate: {low: 1}}}}", False),
        ("evaluation: {evry: 1}", False),
    ],
)
def test_schema_of_a_part_of_a_config(text: str, good: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert (list(validator.iter_errors(YAML(typ="safe").load(text))) == []) is good


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
    config.write_text(BASE.replace("      dense:", "      mine: {name: 'mine.py:brightness'}\n      dense:"))
    message = failure(config, "stages.rl.rewards.mine.scal=2")
    assert message.startswith(
        "command line: stages.rl.rewards.mine.scal=2: brightness has no option 'scal'; did you mean"
    )
    config.write_text(BASE.replace("      dense:", "      mine: {name: 'mine.py:brightnes'}\n      dense:"))
    assert "did you mean 'brightness'" in failure(config)


def _cells(width: int, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    show_table(console, ("name", "what"), [("a", "[1, 2] " * 30), ("bb", "two\nlines")], "title")
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_table_is_wrapped_on_a_terminal_alone() -> None:
    assert _cells(40, terminal=False) == [
        "title",
        "name  what",
        f"a     {'[1, 2] ' * 30}".rstrip(),
        "bb    two\\nlines",
    ]
    lines = _cells(40, terminal=True)
    assert max(map(len, lines)) <= 40 and sum(line.count("[1, 2]") for line in lines) == 30


def test_what_is_listed_is_the_whole_paragraph() -> None:
    rows = {row["name"]: row["what"] for row in catalogue("prompts")["prompts"]}
    assert rows["txt"].startswith("One prompt per line") and rows["hf"].endswith("All rows are held in memory.")
    rows = {row["name"]: row["what"] for row in catalogue("advantage")["advantage"]}
    assert rows["ngrpo"].startswith("NGRPO: ") and rows["ngrpo"].endswith(".") and "\n" not in rows["ngrpo"]
    configs = {row["name"]: row["what"] for row in catalogue("configs")["configs"]}
    assert configs["quickstart/generative"].endswith("docs/quickstart.md has the numbers of three seeds.")


def test_all_about_one_component() -> None:
    found = about("rewards", "hps")
    assert (found["range"], found["needs"], found["checkpoint"]) == ("[-1, 1]", "image", "xswu/HPSv2")
    assert "not comparable" in found["about"]
    options = {row["option"]: row for row in found["options"]}
    assert options["version"] == {
        "option": "version",
        "type": "Literal['v2.0', 'v2.1']",
        "default": "'v2.1'",
        "what": "Which weights of `path`; scores of the two do not compare.",
    }
    assert options["batch_size"]["type"] == "int, >= 1" and options["hub_revision"]["default"] == "null"
    assert options["hub_revision"]["what"].endswith("of a hub id.")
    assert options["path"]["what"].startswith("Hub id"), "an option keeps what its base says of it"
    assert {row["option"]: row["default"] for row in about("term", "kl")["options"]}["coef"] == "required"


def test_options_that_are_models_are_listed_with_their_own_options() -> None:
    options = {row["option"]: row for row in about("reward", "rubric")["options"]}
    assert options["endpoint.url"]["what"].startswith("Base URL") and options["endpoint.model"]["default"] == "required"
    assert options["items.N.hard"]["default"] == "false" and options["items.N.text"]["type"] == "str"
    assert list(options).index("endpoint.url") == list(options).index("endpoint") + 1


def test_all_about_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text('def mine(samples):\n    """Mine."""\n')
    monkeypatch.chdir(tmp_path)
    assert about("reward", "mine.py:mine") == {"name": "mine.py:mine", "about": "Mine.", "options": []}


@pytest.mark.parametrize(("kind", "name", "said"), [("reward", "hsp", "'hps'"), ("methods", "grpo", "mmrl check grpo")])
def test_nothing_about_what_is_no_component(kind: str, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        about(kind, name)


MEDIA = """
policy: {name: tiny_qwen3vl}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: jsonl, path: rows.jsonl}
    prompts_per_step: 2
    group_size: 2
    rollout: {max_new_tokens: 2}
    rewards: {right: {name: exact}}
    objective: {advantage: {name: group, scale: group}}
    optimizer: {lr: 1e-4}
"""


def test_media_that_cannot_be_read_are_all_named_when_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:800])
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    rows = [{"text": "q", "target": "a", "media": name} for name in ("a.png", "cut.png", "cut.mp4")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "media.yaml").write_text(MEDIA)
    resolved = load(str(tmp_path / "media.yaml"))
    with pytest.raises(ConfigError) as caught:
        check_media(resolved)
    picture, video = str(caught.value).splitlines()
    assert picture.startswith(f"{tmp_path / 'rows.jsonl'}:2: medium 1: {tmp_path / 'cut.png'} is broken")
    assert video.startswith(f"{tmp_path / 'rows.jsonl'}:3: medium 1: {tmp_path / 'cut.mp4'} is not a video")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(rows[0]) + "\n" for _ in range(2)))
    assert check_media(load(str(tmp_path / "media.yaml"))) == "2 pictures and videos can be read, 32 x 32 pixels"


def test_a_shaping_reads_a_reward_that_is_there() -> None:
    with pytest.raises(
        ConfigError, match=r"reads a reward 'rihgt', which this stage does not have \(it has: right, format\)"
    ):
        load("methods/puzzlecraft", ["stages.rl.objective.shaping.0.reward=rihgt"])
