"""The command line as a user meets it: a whole run, what it leaves, and bad input in one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.end_to_end.helpers import TINY, metrics, mmrl, newest, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    mmrl("train", write_config(folder), f"run.dir={folder / 'run'}")
    return folder / "run"


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    for name in ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (run / name).is_file(), name
    summary = json.loads((run / "summary.json").read_text())
    rl = summary["stages"]["rl"]
    assert {"mean", "jpeg", "dark"} <= rl["before"].keys() and rl["before"]["total"] == 3 and rl["after"]["total"] == 8
    assert rl["samples"] == 45 and rl["samples_per_second"] > 0 and summary["failed_rewards"] == 0
    names = sorted(path.name for path in (run / "samples").glob("*.png"))
    assert names[0] == "000003_rl_before.png" and names[-1] == "000008_rl_after.png"
    lines = metrics(run)
    assert [line["total"] for line in lines if line["stage"] == "warm"] == [1, 2, 3]
    assert [line["step"] for line in lines if "ratio" in line] == [1, 2, 3, 4, 5]
    assert {"reward/mean", "reward/jpeg", "group_std", "zero_signal_share", "kl", "grad_norm", "clip_low"} <= lines[
        -2
    ].keys()
    assert "eval/dark" in lines[-1]
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_sample_and_export_draw_the_same_image_in_plain_diffusers(run: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import StableDiffusion3Pipeline

    drawn = mmrl("sample", run, "--prompt", "two red circles", "--seed", 5, "--out", tmp_path / "drawn").stdout.split()
    exported = mmrl("export", run, "--to", "diffusers", "--out", tmp_path / "plain").stdout.strip()
    text = (tmp_path / "plain" / "README.md").read_text()
    assert "num_inference_steps=3" in text
    pipe = StableDiffusion3Pipeline.from_pretrained(exported)
    pipe.set_progress_bar_config(disable=True)
    call = text.split("```python")[1].split("```")[0]
    arguments = next(line for line in call.splitlines() if "max_sequence_length" in line)
    length = int(arguments.split("max_sequence_length=")[1].split(",")[0].split(")")[0])
    image = pipe(
        "two red circles", num_inference_steps=3, guidance_scale=1.0, max_sequence_length=length,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    ours = np.asarray(Image.open(drawn[0])).astype(int)
    assert np.abs(ours - np.asarray(image).astype(int)).max() <= 1


def test_check_prints_geometry_and_origins(tmp_path: Path) -> None:
    out = mmrl("check", write_config(tmp_path), "stages.rl.group_size=4").stdout
    assert "3 prompts x 4 samples = 12 per step" in out and "forward passes per image" in out
    assert "command line" in out and "tiny.yaml:" in out and "default" in out


def test_list_and_schema() -> None:
    listed = json.loads(mmrl("list", "--json").stdout)
    assert {"advantage", "surrogate", "reward", "policy", "configs", "methods", "term", "steps"} <= listed.keys()
    assert any(row["name"] == "flow_grpo" for row in listed["methods"])
    assert all(row["what"] for kind, rows in listed.items() if kind != "methods" for row in rows), (
        "something has no description"
    )
    assert "did you mean 'reward'" in mmrl("list", "rewrd", check=False).stderr
    assert json.loads(mmrl("schema").stdout)["title"] == "mmrl config"


def test_report_is_written_again_from_the_files(run: Path) -> None:
    (run / "report.html").unlink()
    assert mmrl("report", run).stdout.strip().endswith("report.html")
    assert (run / "report.html").is_file()


def failure(tmp_path: Path, *overrides: str, text: str = TINY, code: int = 2) -> str:
    done = mmrl("train", write_config(tmp_path, text), f"run.dir={tmp_path / 'run'}", *overrides, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def test_misspelt_key(tmp_path: Path) -> None:
    assert "did you mean 'group_size'" in failure(tmp_path, text=TINY.replace("group_size", "goup_size"))


def test_missing_config() -> None:
    done = mmrl("train", "no/such.yaml", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "no config 'no/such.yaml'" in done.stderr


def test_missing_prompt_file_and_empty_line(tmp_path: Path) -> None:
    text = TINY.replace("{name: shapes, split: train}", "{name: txt, path: prompts.txt}")
    assert "prompts.txt" in failure(tmp_path, text=text)
    (tmp_path / "prompts.txt").write_text("two red circles\n\none blue square\na green square\n")
    text = text.replace("prompts.txt", str(tmp_path / "prompts.txt"))
    assert f"{tmp_path / 'prompts.txt'}:2" in failure(tmp_path, text=text)


def test_reward_that_always_raises_stops_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "brightness.py").write_text(
        "def brightness(samples):\n    raise OSError('weights gone')\n\n\ndef darkness(samples):\n    return [0.0] * len(samples)\n"
    )
    done = mmrl("train", config, f"run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "weights gone" in done.stderr and "brightness.py:2" in done.stderr
    assert "no sample of the first step could be scored" in done.stderr


def test_reward_that_returns_nan_is_a_failure_and_never_a_number(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "brightness.py").write_text(
        "def brightness(samples):\n    return [float('nan') if i == 0 else float(s.images[0].mean()) for i, s in enumerate(samples)]\n\n\n"
        "def darkness(samples):\n    return [0.0] * len(samples)\n"
    )
    done = mmrl("train", config, f"run.dir={tmp_path / 'run'}", "stages.rl.failures.share=0.5")
    assert "returned nan" in done.stderr
    steps = [line for line in metrics(tmp_path / "run") if "ratio" in line]
    assert [line["failed"] for line in steps] == [1.0] * 5
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["failed_rewards"] == 5


def test_resume_where_nothing_was_run(tmp_path: Path) -> None:
    done = mmrl("train", write_config(tmp_path), f"run.dir={tmp_path / 'none'}", "--resume", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "not a run's folder" in done.stderr


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for _ in range(2):
        mmrl("train", config, "stages.warm=null", "stages.rl.steps=1", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir()) == ["001", "002"]
    assert newest(tmp_path / "runs" / "tiny" / "002").name == "step_000001"


def test_lora_run_exports_its_adapter(tmp_path: Path) -> None:
    text = TINY.replace("    objective:\n", "    train: {mode: lora, rank: 4, alpha: 8}\n    objective:\n")
    mmrl("train", write_config(tmp_path, text), f"run.dir={tmp_path / 'run'}", "stages.warm=null")
    exported = Path(mmrl("export", tmp_path / "run", "--to", "peft").stdout.strip())
    written = load_file(next(exported.glob("**/adapter_model.safetensors")))
    assert written and all(".lora_A." in key or ".lora_B." in key for key in written)
    assert any(value.any() for key, value in written.items() if ".lora_B." in key), "the adapter was never trained"


def test_doctor_runs() -> None:
    assert "torch" in mmrl("doctor").stdout


def test_trackers(tmp_path: Path) -> None:
    mmrl(
        "train",
        write_config(tmp_path),
        f"run.dir={tmp_path / 'run'}",
        "run.trackers=[tensorboard]",
        "stages.warm=null",
        "stages.rl.steps=1",
    )
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert "not installed" in failure(tmp_path / "other", "run.trackers=[wandb]")


def test_disk_full_while_checkpointing_is_one_line(tmp_path: Path) -> None:
    """A file size limit of the process stands for the full disk."""
    import subprocess
    import sys

    config = write_config(tmp_path)
    script = (
        "import errno, sys\nfrom mmrl import checkpoint\n"
        "def full(*args):\n    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "checkpoint.save_file = full\nsys.argv = ['mmrl', *sys.argv[1:]]\nfrom mmrl.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(config), f"run.dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: disk full while writing" in done.stderr and "--resume" in done.stderr
