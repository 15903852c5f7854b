"""Preference models: tiny random models of the published classes, saved and loaded as from the hub, against naive formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmrl.errors import UserError
from mmrl.reward import RewardSet
from mmrl.rewards.preference.aesthetic import Aesthetic
from mmrl.rewards.preference.base import ScoreHead, file_of, tensors
from mmrl.rewards.preference.clip import ClipScore, Hps, OpenClipScore, PickScore
from mmrl.rewards.preference.image_reward import MEAN, STD, VISION_NAMES, ImageReward, build
from mmrl.rewards.preference.pixels import Form, clip_batch, floats
from mmrl.rewards.preference.teacher import PromptEcho, VqaScore, mean_log_prob
from mmrl.rollout import FAILED, OK, Prompt, Sample
from mmrl.vlm.tiny import build_tiny_qwen3vl

PROMPTS = ("a red circle", "two blue squares left of a green triangle")
CPU = torch.device("cpu")


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


def samples(*sizes: tuple[int, int]) -> list[Sample]:
    shapes = sizes or ((40, 56), (64, 33), (32, 32))
    return [Sample(Prompt(str(i), PROMPTS[i % 2]), images=(picture(i, *shape),)) for i, shape in enumerate(shapes)]


def tiny_tokenizer(folder: Path, kind: Any) -> None:
    words = ["<|startoftext|>", "<|endoftext|>", "<pad>", "[UNK]", *sorted({w for p in PROMPTS for w in p.split()})]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    kind(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        unk_token="[UNK]",
        model_max_length=20,
    ).save_pretrained(folder)


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 20, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tiny_tokenizer(folder, PreTrainedTokenizerFast)
    return folder


def ready(reward: Any) -> Any:
    reward.setup(CPU)
    return reward


def batch_equals_single(reward: Any) -> list[float]:
    together = RewardSet({"r": (reward, 1.0)}).score(samples())
    alone = [RewardSet({"r": (reward, 1.0)}).score([one]) for one in samples()]
    assert (together.status == OK).all(), together.messages
    found = together.values[:, 0]
    np.testing.assert_allclose(found, [one.values[0, 0] for one in alone], rtol=1e-4, atol=1e-5)
    assert len({round(float(value), 6) for value in found}) == len(found)  # it looks at the picture
    return found.tolist()


def gradient_is_right(reward: Any, size: int = 32) -> None:
    """Against a central difference along a random direction, in float64 steps of float32 scores."""
    images = torch.stack(floats([picture(7, size, size), picture(8, size, size)], CPU)).clamp(0.1, 0.9)
    images.requires_grad_(True)
    reward.score_tensor(images, PROMPTS).sum().backward()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    step = 2e-3
    with torch.no_grad():
        up, down = (reward.score_tensor(images + sign * step * direction, PROMPTS).sum() for sign in (1, -1))
    assert images.grad is not None
    slope = float((images.grad * direction).sum())
    assert float((up - down) / (2 * step)) == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_pictures_are_prepared_as_the_reference_processor_does() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for seed, shape in enumerate([(40, 56), (64, 33), (32, 32), (200, 120)]):
        one = picture(seed, *shape)
        wanted = processor(Image.fromarray(one), return_tensors="pt")["pixel_values"]
        found = clip_batch(floats([one], CPU), 32)
        # the processor rounds to bytes after resizing, this does not: half a byte over the smallest std
        assert float((found - wanted).abs().max()) < 1.1 / 255 / 0.26


def test_clipscore_is_the_cosine_of_the_models_own_features(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    folder = str(tiny_clip(tmp_path))
    reward = ready(ClipScore(path=folder))
    found = batch_equals_single(reward)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for sample, value in zip(samples(), found, strict=True):
        out = model(
            pixel_values=clip_batch(floats(sample.images, CPU), 32),
            **tokenizer(sample.prompt.text, padding="max_length", max_length=20, return_tensors="pt"),
        )
        assert value == pytest.approx(float((out.image_embeds * out.text_embeds).sum().detach()), abs=1e-5)
    percent = batch_equals_single(ready(ClipScore(path=folder, form="percent"))) if min(found) > 0 else None
    assert percent is None or percent == pytest.approx([100 * value for value in found], rel=1e-4)
    gradient_is_right(reward)


def test_pickscore_scales_by_the_models_temperature(tmp_path: Path) -> None:
    folder = str(tiny_clip(tmp_path))
    by_form = {
        form: batch_equals_single(ready(PickScore(path=folder, processor=None, form=form)))
        for form in ("raw", "div26", "cosine")
    }
    scale = float(np.exp(load_file(tmp_path / "model.safetensors")["logit_scale"]))
    np.testing.assert_allclose(by_form["raw"], np.multiply(by_form["cosine"], scale), rtol=1e-5)
    np.testing.assert_allclose(by_form["raw"], np.multiply(by_form["div26"], 26), rtol=1e-5)


def tiny_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    for name in ("tiny-clip", "tiny-clip-quickgelu"):
        (tmp_path / f"{name}.json").write_text(json.dumps(config | {"quick_gelu": name.endswith("gelu")}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return open_clip


def test_hps_loads_the_published_layout_and_is_a_cosine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_clip = tiny_open_clip(monkeypatch, tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip", pretrained=None).eval()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    reward = ready(Hps(path=str(tmp_path), architecture="tiny-clip"))
    found = batch_equals_single(reward)
    tokens = open_clip.get_tokenizer("tiny-clip")
    for sample, value in zip(samples(), found, strict=True):
        image = model.encode_image(clip_batch(floats(sample.images, CPU), 32, Form(clamp=False)))[0]
        text = model.encode_text(tokens([sample.prompt.text]))[0]
        assert value == pytest.approx(float(image @ text / image.norm() / text.norm()), abs=1e-5)
    same = ready(OpenClipScore(path=str(tmp_path / "HPS_v2.1_compressed.pt"), architecture="tiny-clip"))
    assert batch_equals_single(same) == pytest.approx(found, abs=1e-4)  # its pictures are clamped
    gradient_is_right(reward)
    rough = ready(Hps(path=str(tmp_path), architecture="tiny-clip", dtype="bfloat16"))
    assert rough.score(samples()) == pytest.approx(found, abs=0.02)

    state = model.state_dict()
    state["stranger"] = state.pop("ln_final.bias")
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match=r"lacks weights: ln_final\.bias"):
        ready(Hps(path=str(tmp_path), architecture="tiny-clip"))
    with pytest.raises(UserError, match="quickgelu"):
        ready(OpenClipScore(path="openai", architecture="ViT-L-14"))


def test_hps_prepares_pictures_as_the_original() -> None:
    """To a tensor, then resized (no clamp), cropped and normalised."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    from mmrl.rewards.preference.pixels import CLIP_MEAN, CLIP_STD

    reference = Compose(
        [ToTensor(), Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), Normalize(CLIP_MEAN, CLIP_STD)]
    )
    form = Hps().form({"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"})
    for shape in ((40, 56), (64, 33), (7, 9)):
        sharp = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (*shape, 3))
        found = clip_batch(floats([sharp], CPU), 32, form)[0]
        torch.testing.assert_close(found, reference(Image.fromarray(sharp)), atol=1e-5, rtol=0)
        assert float((clip_batch(floats([sharp], CPU), 32)[0] - found).abs().max()) > 0.1


def test_open_clip_weights_say_how_pictures_are_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of open_clip's weights want another mean, interpolation or a squashed picture; some an activation that the architecture's
    name must say."""
    open_clip = tiny_open_clip(monkeypatch, tmp_path)
    from open_clip.pretrained import _PRETRAINED
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip", pretrained=None).state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: None)
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for own in (half, {"interpolation": "bilinear"}, half | {"resize_mode": "squash"}):
        tag = {"hf_hub": "nowhere/", **own}
        monkeypatch.setitem(_PRETRAINED, "tiny-clip", {"tag": tag, "quick": tag | {"quick_gelu": True}})
        reward = ready(OpenClipScore(path="tag", architecture="tiny-clip"))
        wanted = image_transform_v2(PreprocessCfg(size=32, **own), is_train=False)
        for sample in samples():
            reference = reward._model.encode_image(wanted(Image.fromarray(sample.images[0]))[None])[0]
            found = reward.picture_features(floats(sample.images, CPU))[0]
            assert float(found @ reference / reference.norm()) > 0.9999
    with pytest.raises(UserError, match="architecture: tiny-clip-quickgelu"):
        ready(OpenClipScore(path="quick", architecture="tiny-clip"))


def test_a_clip_says_how_pictures_are_prepared(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor

    folder = tiny_clip(tmp_path)
    usual = ready(ClipScore(path=str(folder))).score(samples())
    sides: Any = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, **sides).save_pretrained(folder)
    reward = ready(ClipScore(path=str(folder)))
    assert reward.score(samples()) != pytest.approx(usual, abs=1e-5)
    wanted = clip_batch(floats(samples()[0].images, CPU), 32, Form((0.5,) * 3, (0.5,) * 3))
    features = reward._model.get_image_features(wanted).pooler_output[0]
    found = reward.picture_features(floats(samples()[0].images, CPU))[0]
    torch.testing.assert_close(found, features / features.norm())
    CLIPImageProcessor(**sides | {"size": {"shortest_edge": 40}}).save_pretrained(folder)
    with pytest.raises(UserError, match="got side 40, crop 32 x 32"):
        ready(ClipScore(path=str(folder)))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="has no preprocessor_config"):
        ready(ClipScore(path=str(folder)))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_rounds_features_and_not_scores(tmp_path: Path, kind: Any) -> None:
    """A cosine in bfloat16 has steps of 1/256 to 1/512: most of a group would tie."""
    folder = str(tiny_clip(tmp_path))
    full, half = (ready(PickScore(path=folder, processor=None, dtype=one)) for one in ("float32", kind))
    found = half.score(samples())
    assert found == pytest.approx(full.score(samples()), abs=0.02 * full._scale) and half._scale == full._scale
    assert all(value != float(torch.tensor(value).to(torch.bfloat16)) for value in found)


def test_the_aesthetic_score_does_not_read_the_prompt(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    torch.manual_seed(1)
    head = ScoreHead(12)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(5)
    torch.save(head.state_dict(), tmp_path / "aesthetic-model.pth")
    reward = ready(Aesthetic(path=str(tmp_path), clip=str(folder)))
    found = batch_equals_single(reward)
    others = [Sample(Prompt("x", "another prompt"), images=one.images) for one in samples()]
    assert reward.score(others) == pytest.approx(found, rel=1e-4)
    from transformers import CLIPModel

    features = CLIPModel.from_pretrained(folder).get_image_features(clip_batch(floats(samples()[0].images, CPU), 32))
    vector = features.pooler_output[0]
    assert found[0] == pytest.approx(float(head.eval()(vector[None] / vector.norm())), rel=1e-4)
    gradient_is_right(reward)


class SmallImageReward(ImageReward):
    """ImageReward with a tiny picture encoder."""

    def vision_sizes(self) -> dict[str, Any]:
        return {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
        }


def test_imagereward_loads_the_published_names(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64,
            "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "sep_token_id": 2, "encoder_width": 24}  # fmt: skip  # not the width, as published
    (tmp_path / "med_config.json").write_text(json.dumps(text))
    torch.manual_seed(0)
    model = build(text, **SmallImageReward().vision_sizes()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("vision."):
            state[f"blip.visual_encoder.{original(name.removeprefix('vision.'))}"] = value
        elif name.startswith("text."):
            state[f"blip.text_encoder.{name.removeprefix('text.')}"] = value
        else:
            state[f"mlp.{name.removeprefix('head.')}"] = value
    state |= {
        "blip.vision_proj.weight": torch.zeros(2),
        "blip.text_encoder.embeddings.position_ids": torch.zeros(1, 40),
    }
    torch.save(state, tmp_path / "ImageReward.pt")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *sorted({w for p in PROMPTS for w in p.split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "words")

    reward = ready(SmallImageReward(path=str(tmp_path), tokenizer=str(tmp_path / "words")))
    found = batch_equals_single(reward)
    tokens = reward._tokenizer(PROMPTS[0], padding="max_length", max_length=35, return_tensors="pt")
    pixels = clip_batch(floats(samples()[0].images, CPU), 32)
    raw = float(model(pixels, tokens["input_ids"], tokens["attention_mask"]))
    assert found[0] == pytest.approx((raw - MEAN) / STD, rel=1e-4)
    other = Sample(Prompt("x", PROMPTS[1]), images=samples()[0].images)
    assert reward.score([other])[0] != pytest.approx(found[0], abs=1e-6)  # it reads the prompt
    gradient_is_right(reward)
    rough = ready(SmallImageReward(path=str(tmp_path), tokenizer=str(tmp_path / "words"), dtype="bfloat16"))
    assert rough.score(samples()) == pytest.approx(found, abs=0.1)


def test_imagereward_has_the_shapes_of_the_published_weights() -> None:
    """`med_config.json` as published: its `encoder_width` is not that of the large picture encoder."""
    text = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30524, "encoder_width": 768, "add_cross_attention": True,
    }  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build(text).state_dict().items()}
    for part in ("key", "value"):
        assert shapes[f"text.encoder.layer.11.crossattention.self.{part}.weight"] == (768, 1024)
    assert shapes["vision.embeddings.position_embedding"] == (1, 197, 1024)
    assert shapes["vision.encoder.layers.23.self_attn.qkv.weight"] == (3072, 1024)
    assert shapes["text.embeddings.word_embeddings.weight"] == (30524, 768) and shapes["head.layers.7.weight"] == (
        1,
        16,
    )


def original(name: str) -> str:
    """The published name of a weight of `BlipVisionModel`."""
    import re

    plain = {"embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed"}
    if name in plain:
        return plain[name]
    for old, new in (
        ("embeddings.patch_embedding.", "patch_embed.proj."),
        ("encoder.layers.", "blocks."),
        (".self_attn.qkv.", ".attn.qkv."),
        (".self_attn.projection.", ".attn.proj."),
        ("post_layernorm.", "norm."),
    ):
        name = name.replace(old, new)
    assert len(VISION_NAMES) == 8
    return re.sub(r"\.layer_norm([12])\.", r".norm\1.", name)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    build_tiny_qwen3vl(folder)
    return str(folder)


def test_promptecho_is_the_mean_log_prob_of_the_prompt(teacher_folder: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    reward = ready(PromptEcho(path=teacher_folder, dtype="float32", batch_size=8))
    found = batch_equals_single(reward)
    model, processor = (kind.from_pretrained(teacher_folder) for kind in (AutoModelForImageTextToText, AutoProcessor))
    for sample, value in zip(samples(), found, strict=True):
        head = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": reward.query}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        inputs = processor(
            text=[head + sample.prompt.text], images=[Image.fromarray(sample.images[0])], return_tensors="pt",
            return_mm_token_type_ids=True,
        )  # fmt: skip
        number = len(processor.tokenizer(sample.prompt.text, add_special_tokens=False)["input_ids"])
        logits = model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0]
        total = sum(float(logits[len(ids) - number + k - 1, ids[len(ids) - number + k]]) for k in range(number))
        assert value == pytest.approx(total / number, rel=1e-4)
    summed = ready(PromptEcho(path=teacher_folder, dtype="float32", reduce="sum")).score(samples())
    assert summed[0] < found[0] * 2
    flat = [Sample(Prompt("0", PROMPTS[0]), images=(np.full((40, 56, 3), 127, dtype=np.uint8),))]
    assert ready(PromptEcho(path=teacher_folder, dtype="float32", baseline=True)).score(flat)[0] == pytest.approx(
        0, abs=1e-5
    )


def test_vqascore_forms(teacher_folder: str) -> None:
    by_mode = {
        mode: batch_equals_single(ready(VqaScore(path=teacher_folder, dtype="float32", mode=mode)))
        for mode in ("token_prob", "yes_no", "sequence")
    }
    assert all(0 < value < 1 for values in by_mode.values() for value in values)
    assert by_mode["yes_no"] > by_mode["token_prob"]
    yes, no = ready(VqaScore(path=teacher_folder, dtype="float32"))._first_tokens()
    assert yes and no and not set(yes) & set(no)  # " Yes" and " No" begin with one blank here


def test_mean_log_prob_leaves_padding_out() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    found = mean_log_prob(logits, tokens, mask)
    own = logits.log_softmax(-1)
    assert float(found[1]) == pytest.approx(float(own[1, 0, 4]))
    assert float(found[0]) == pytest.approx(float((own[0, 0, 1] + own[0, 1, 2] + own[0, 2, 3]) / 3))


def test_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert list(tensors(str(tmp_path / "a.safetensors"))) == ["a"]
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    assert list(tensors(str(tmp_path / "a.pt"), "state_dict")) == ["a"]
    torch.save({"a": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="plain tensors"):
        tensors(str(tmp_path / "bad.pt"))
    with pytest.raises(UserError, match="no weight file"):
        tensors(str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match=r"no 'b\.pt' in the folder"):
        file_of(str(tmp_path), "b.pt")


def test_a_clip_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["stranger"] = state.pop("logit_scale")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights: logit_scale"):
        ready(ClipScore(path=str(folder)))
    state["logit_scale"] = state.pop("stranger")
    state |= {f"{side}_model.embeddings.position_ids": torch.arange(17)[None] for side in ("text", "vision")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ready(ClipScore(path=str(folder)))  # as in the published files
    state["visual_projection.weight"] = torch.zeros(3, 4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"visual_projection\.weight is \(3, 4\), expected \(12, 16\)"):
        ready(ClipScore(path=str(folder)))


def test_tokenizer_and_preprocessing_are_of_the_revision_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor

    folder, asked = str(tiny_clip(tmp_path)), []
    for kind in (AutoTokenizer, CLIPImageProcessor):
        load = kind.from_pretrained
        monkeypatch.setattr(
            kind, "from_pretrained", lambda *given, load=load, **own: asked.append(own["revision"]) or load(*given)
        )
    ready(ClipScore(path=folder, hub_revision="abc"))
    ready(PickScore(path=folder, hub_revision="abc", processor=folder))  # another repository has revisions of its own
    assert asked == ["abc", "abc", None, None]


def test_what_a_picture_or_prompt_may_be(tmp_path: Path) -> None:
    """One pixel, a strip, a prompt of nothing or of a thousand words; what is no RGB picture is no number."""
    reward = ready(ClipScore(path=str(tiny_clip(tmp_path)), batch_size=3))
    dots = [np.zeros(shape, dtype=np.uint8) for shape in ((1, 1, 3), (2, 90, 3), (300, 200, 3), (8, 8), (8, 8, 4))]
    given = [Sample(Prompt("a", "a red circle"), images=(dot,)) for dot in dots]
    given += [
        Sample(Prompt("a", text), images=(picture(0),)) for text in ("", "a red circle " * 400, "a red circle " * 500)
    ]
    given += [Sample(Prompt("a", "a red circle"), images=(picture(0), picture(1)))]
    scores = RewardSet({"r": (reward, 1.0)}).score(given)
    assert scores.status[:, 0].tolist() == [OK, OK, OK, FAILED, FAILED, OK, OK, OK, OK]
    found = scores.values[:, 0]
    assert found[0] == pytest.approx(found[1], abs=1e-6) and found[0] == pytest.approx(found[2], abs=1e-6)  # all black
    assert found[6] == pytest.approx(found[7], abs=1e-6) != found[5]  # cut at the same length
    assert found[8] == pytest.approx(
        np.mean(reward.score([Sample(Prompt("a", "a red circle"), images=(picture(k),)) for k in (0, 1)])), abs=1e-6
    )
    pictures = torch.stack(floats([picture(7, 32, 32), picture(8, 32, 32)], CPU))
    stored = [Sample(Prompt("a", PROMPTS[k]), images=(picture(7 + k, 32, 32),)) for k in range(2)]
    assert reward.score_tensor(pictures, PROMPTS).tolist() == pytest.approx(reward.score(stored), abs=1e-6)
