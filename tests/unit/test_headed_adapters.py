"""Checkpoints that hold adapters alone: the same scores as with the base merged or whole, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import UserError
from mmrl.rewards.preference.headed_adapter import without
from mmrl.rewards.preference.headed_inputs import sized_frames
from mmrl.rewards.preference.hpsv3 import HpsV3
from mmrl.rewards.preference.video_align import MEAN_STD, VideoAlign, frame_numbers
from tests.unit.headed_models import AXES, AXES_QUESTION, PIXELS, Tiny, old_names, write_config
from tests.unit.test_headed_rewards import filmed, ready

WHOLE = ("base_model.model.visual.", "base_model.model.model.embed_tokens.")
ALPHA, RANK = 12, 4


def bent(model: Any, names: tuple[str, ...]) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(one in name for one in names):
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tiny, Path, Any, torch.Tensor]]:
    """As the original's training writes both: `checkpoint-1/model.pth`, and `checkpoint-2` with adapters by peft on every language
    linear (rank-stabilised) and the trained vision tower, embeddings and head. The base has more embeddings than tokens."""
    import peft

    folder = tmp_path_factory.mktemp("adapters")
    tiny = Tiny("qwen2_vl", folder, AXES)
    tokens = len(tiny.processor.tokenizer)
    tiny.model.resize_token_embeddings(tokens + 5, mean_resizing=False)
    tiny.model.save_pretrained(tiny.base)
    tiny.model.resize_token_embeddings(tokens, mean_resizing=False)
    bent(tiny.model, ("visual", "embed_tokens"))
    linears = [name for name, one in tiny.model.named_modules() if isinstance(one, torch.nn.Linear)]
    targets = [name for name in linears if "visual" not in name and "lm_head" not in name]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_rslora=True, init_lora_weights=False)
    adapted = peft.get_peft_model(tiny.model, config).eval()
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(6))
    state = old_names(adapted.state_dict()) | {"base_model.model.rm_head.weight": head}
    (folder / "checkpoint-1").mkdir()
    torch.save(state, folder / "checkpoint-1" / "model.pth")
    step = folder / "checkpoint-2"
    adapted.save_pretrained(step, save_embedding_layers=False)
    save_file(old_names(load_file(step / "adapter_model.safetensors")), step / "adapter_model.safetensors")
    trained = {name: value for name, value in state.items() if name.startswith((*WHOLE, "base_model.model.rm_head"))}
    torch.save(trained, step / "non_lora_state_dict.pth")
    write_config(folder, peft_lora_config={"lora_enable": True, "lora_alpha": ALPHA, "use_rslora": True})
    (folder / "rubric.txt").write_text(AXES_QUESTION)
    yield tiny, folder, adapted.base_model.model.model, head


def align(folder: Path, tiny: Tiny, **options: Any) -> Any:
    return ready(VideoAlign, path=str(folder), base=tiny.base, min_pixels=784, **options)


def test_adapters_alone_score_as_the_whole_does(layouts: Any) -> None:
    tiny, folder, adapted, head = layouts
    whole = align(folder, tiny, file="checkpoint-1/model.pth", of="ta").score(filmed()[:1])
    for options in ({"file": "checkpoint-2/adapter_model.safetensors"}, {"path": str(folder / "checkpoint-2")}):
        found = align(options.pop("path", folder), tiny, of="ta", **options).score(filmed()[:1])
        assert found == pytest.approx(whole, rel=1e-5, abs=1e-5)
    assert align(folder / "checkpoint-2" / "adapter_model.safetensors", tiny)._model is not None
    (sample,) = filmed()[:1]
    assert sample.video is not None
    shown = torch.from_numpy(sized_frames(sample.video[frame_numbers(8, 4, 2.0)], 28, 784, PIXELS)).permute(0, 3, 1, 2)
    hidden = tiny.hidden(AXES_QUESTION.replace("{text_prompt}", sample.prompt.text), video=shown, model=adapted)
    mean, std = MEAN_STD["ta"]
    assert whole[0] == pytest.approx((float(hidden[2] @ head[0].double()) - mean) / std, rel=1e-3, abs=1e-3)
    assert whole[0] != pytest.approx((float(hidden[1] @ head[0].double()) - mean) / std, rel=1e-2)


def test_adapters_as_a_pickle_by_newer_names(layouts: Any, tmp_path: Path) -> None:
    tiny, folder, _, _ = layouts
    step = copied(folder, tmp_path)
    state = load_file(step / "adapter_model.safetensors")
    new = {name.replace("model.model.layers", "model.model.language_model.layers"): one for name, one in state.items()}
    (step / "adapter_model.safetensors").unlink()
    torch.save(new, step / "adapter_model.bin")
    whole = align(folder, tiny, file="checkpoint-1/model.pth", of="vq").score(filmed()[:1])
    assert align(step, tiny, of="vq").score(filmed()[:1]) == pytest.approx(whole, rel=1e-5, abs=1e-5)


def copied(folder: Path, into: Path) -> Path:
    """`checkpoint-2` below `into`, with the JSON and the rubric above it."""
    import shutil

    for name in ("model_config.json", "rubric.txt"):
        shutil.copy(folder / name, into / name)
    return shutil.copytree(folder / "checkpoint-2", into / "checkpoint-2")


def test_adapters_that_do_not_fit_are_one_line(layouts: Any, tmp_path: Path) -> None:
    tiny, folder, _, _ = layouts
    step = copied(folder, tmp_path)
    file, trained = step / "adapter_model.safetensors", step / "non_lora_state_dict.pth"
    state, whole = load_file(file), torch.load(trained, weights_only=True)
    config = json.loads((step / "adapter_config.json").read_text())
    first = next(name for name in state if "q_proj.lora_A" in name)

    def refused(told: str) -> None:
        with pytest.raises(UserError, match=told) as error:
            align(step, tiny)
        assert "\n" not in str(error.value)

    q_proj = first.removesuffix(".lora_A.weight")
    for adapters, told in (
        ({name: one for name, one in state.items() if q_proj not in name}, r"lacks adapters of language_model\..*q_proj"),
        ({name: one for name, one in state.items() if name != first}, "without lora_B|without lora_A"),
        (state | {"base_model.model.visual.stranger.lora_A.weight": state[first].clone(),
                  "base_model.model.visual.stranger.lora_B.weight": state[first].T.contiguous()}, "without its weight"),
        (state | {first: torch.zeros(RANK, 7)}, "of another shape: A"),
        (state | {first: torch.zeros(RANK + 1, 64)}, "rank 5 .*says r is 4"),
        (state | {"base_model.model.model.stranger": torch.zeros(2)}, r"unknown weights: language_model\.stranger"),
    ):  # fmt: skip
        save_file(adapters, file)
        refused(told)
    save_file(state, file)
    for changed, told in (
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is"), ({"use_dora": True}, "use_dora is True; only plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"), ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"r": None}, "r is None"), ({"lora_alpha": 99}, "lora_alpha is 12, and 'adapter_config.json' 99"),
        ({"use_rslora": False}, "use_rslora is True"), ({"target_modules": ["nowhere"]}, "lacks adapters of nowhere"),
    ):  # fmt: skip
        (step / "adapter_config.json").write_text(json.dumps(config | changed))
        refused(told)
    (step / "adapter_config.json").write_text("{")
    refused("is no JSON")
    (step / "adapter_config.json").write_text(json.dumps(config))
    head = "base_model.model.rm_head.weight"
    for part, told in (
        ({name: one for name, one in whole.items() if name != head}, "no reward head"),
        (whole | {"base_model.model.visual.merger.ln_q.weight": torch.zeros(3)}, "does not fit the model"),
        (whole | {"base_model.model.model.embed_tokens.weight": torch.zeros(9, 64)}, "has 9 token embeddings"),
        ({**whole, "code": Path("x")}, "cannot be read as plain tensors"),
    ):  # fmt: skip
        torch.save(part, trained)
        refused(told)
    trained.unlink()
    refused("no 'non_lora_state_dict.pth' in the folder")


def test_embeddings_that_were_not_trained_are_the_bases(layouts: Any, tmp_path: Path) -> None:
    tiny, folder, _, _ = layouts
    step = copied(folder, tmp_path)
    trained = torch.load(step / "non_lora_state_dict.pth", weights_only=True)
    del trained["base_model.model.model.embed_tokens.weight"]
    torch.save(trained, step / "non_lora_state_dict.pth")
    rows = align(step, tiny)._model.backbone.language_model.embed_tokens.weight
    base = load_file(Path(tiny.base) / "model.safetensors")
    (name,) = (one for one in base if one.endswith("embed_tokens.weight"))
    assert len(rows) == len(tiny.processor.tokenizer) == len(base[name]) - 5
    assert torch.equal(rows, base[name][: len(rows)])


def test_embeddings_in_the_adapters_file_win(layouts: Any, tmp_path: Path) -> None:
    """peft adds them itself, with the language head, where the number of tokens has changed."""
    tiny, folder, _, _ = layouts
    step = copied(folder, tmp_path)
    file, name = step / "adapter_model.safetensors", "base_model.model.model.embed_tokens.weight"
    own = 2 * torch.load(step / "non_lora_state_dict.pth", weights_only=True)[name]
    save_file(load_file(file) | {name: own, "base_model.model.lm_head.weight": own.clone()}, file)
    assert torch.equal(align(step, tiny)._model.backbone.language_model.embed_tokens.weight, own)


def test_the_files_of_a_hub_id_lie_in_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl.rewards.preference import headed

    monkeypatch.setattr(headed, "file_of", lambda path, name, revision: f"{path}@{revision}:{name}")
    reward = HpsV3(path="some/where", hub_revision="r", file="checkpoint-3/adapter_model.bin")
    assert reward._path_of("adapter_config.json") == "some/where@r:checkpoint-3/adapter_config.json"


def test_targets_are_whole_names_or_their_ends() -> None:
    base = dict.fromkeys(("language_model.a.q.weight", "language_model.b.q.weight", "visual.xq.weight"), torch.zeros(1))
    assert without(["q"], base, {"language_model.a.q"}) == ["language_model.b.q"]
    assert without(["model.a.q"], base, {"language_model.a.q"}) == []
    assert without(["a.q", "z"], base, {"language_model.a.q"}) == ["z"]
