"""Reward models that are a Qwen-VL backbone with a regression head, read at special tokens: HPSv3, VideoAlign, EditReward."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.reward import Reward
from mmrl.rewards.preference import headed_adapter
from mmrl.rewards.preference.base import DTYPES, file_of, fill, pretrained, tensors
from mmrl.rewards.preference.headed_inputs import Row, encode, places, sequential
from mmrl.rewards.preference.headed_state import cast, divided, merged
from mmrl.rewards.preference.rubric import MEDIA, Rubric, check_free
from mmrl.rollout import Prompt

BACKBONES = ("qwen2_vl", "qwen2_5_vl")
EMBEDDINGS = "language_model.embed_tokens.weight"


class HeadedModel(nn.Module):
    """A Qwen-VL model without its language head, and a head in float32."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head.float()

    def forward(self, inputs: dict[str, Tensor], at: Tensor, positions: str) -> Tensor:
        """Last hidden states `(B, K, D)` float32 at the places `at (B, K)`.

        `sequential` counts positions through; `mrope` leaves them to the model (time, height, width of the media).
        """
        dtype = self.backbone.dtype
        own = {name: value.to(dtype) if name.startswith("pixel_values") else value for name, value in inputs.items()}
        position_ids = sequential(inputs["input_ids"]) if positions == "sequential" else None
        hidden = self.backbone(**own, position_ids=position_ids, use_cache=False).last_hidden_state
        return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1])).float()


class Headed(Reward):
    """Base: weights, processor, rubrics, batches.

    The prompt's question is the rubric that the checkpoint was trained with, which is no part of this package (see `read_rubric`).
    """

    path: str
    """Hub id, folder or file of the weights: backbone and head together, or adapters over `base`."""
    file: str
    """Name of the weights in `path`, or of `adapter_model.safetensors` (or `.bin`), which a folder may hold instead."""
    base: str
    """Hub id or folder of the backbone's config and processor; its weights are read where `file` holds adapters alone."""
    hub_revision: str | None = None
    """Branch, tag or commit of a hub id in `path`."""
    base_revision: str | None = None
    """Branch, tag or commit of a hub id in `base`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the backbone; the head is float32."""
    batch_size: int = Field(default=4, ge=1)
    """Samples per forward pass; more take more memory."""
    positions: Literal["sequential", "mrope"] = "sequential"
    """`sequential` is what the originals were trained with."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Of adapters that the file holds unmerged."""

    tokens: ClassVar[tuple[str, ...]] = ("<|Reward|>",)
    """Special tokens at which the head reads, in their order in a rubric."""

    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))
    _model: Any = PrivateAttr(default=None)
    _processor: Any = PrivateAttr(default=None)
    _rubrics: tuple[Rubric, ...] = PrivateAttr(default=())

    def setup(self, device: torch.device) -> None:
        """Read the rubrics, then load the model, frozen. Raises UserError for what is missing or does not fit."""
        self._rubrics = self.read_rubrics()
        self._device = device
        self._model = self.load().to(device).eval().requires_grad_(False)

    @property
    def revision(self) -> str:  # type: ignore[override]
        """With the SHA-256 of the rubrics once they are read: another rubric is another reward."""
        if not self._rubrics:
            return "1"
        digests = "".join(one.sha256 for one in self._rubrics)
        return f"1, rubric sha256 {hashlib.sha256(digests.encode()).hexdigest() if len(self._rubrics) > 1 else digests}"

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt that holds a special token."""
        check_free(prompt.text, (*self.tokens, *MEDIA))

    @abstractmethod
    def read_rubrics(self) -> tuple[Rubric, ...]:
        """One or more."""

    @abstractmethod
    def make_head(self, width: int, state: dict[str, Tensor], file: str) -> nn.Module:
        """An empty head on hidden states of `width` for the weights `state`."""

    def adapter(self, own: Mapping[str, Any]) -> tuple[Any, bool]:
        """`alpha` of unmerged adapters, and whether they are rank-stabilised; `own` is their `adapter_config.json`, or empty."""
        return self.lora_alpha or own.get("lora_alpha"), bool(own.get("use_rslora", False))

    def load(self) -> HeadedModel:
        """Backbone and head, every weight used and none missing."""
        file = file_of(self.path, self._file(), self.hub_revision)
        state = tensors(file, "model")
        self._processor = self._load_processor()
        own: dict[str, Any] = {}
        if Path(file).name in headed_adapter.FILES:
            own = headed_adapter.read_adapter_config(self._path_of(headed_adapter.CONFIG))
            trained = tensors(self._path_of(headed_adapter.TRAINED))
            state = headed_adapter.over_base(self._base_state(), trained, state, own, file)
        alpha, rank_root = self.adapter(own)
        dtype = DTYPES[self.dtype]
        backbone, head_state = divided(merged(state, alpha, file, rank_root, dtype), file)
        model = self._make_backbone(backbone, file)
        fill(model, cast(backbone, dtype), file, assign=True)
        model.to(dtype)  # the frequencies of the positions too: the originals round them
        head = self.make_head(model.config.text_config.hidden_size, head_state, file)
        fill(head, cast(head_state, torch.float32), file, assign=True)
        return HeadedModel(model, head)

    def _file(self) -> str:
        """`file`, or the adapters that a folder holds instead."""
        local = Path(self.path)
        held = [name for name in headed_adapter.FILES if (local / name).is_file()]
        return held[0] if held and not (local / self.file).is_file() else self.file

    def _path_of(self, name: str) -> str:
        """A file beside the weights."""
        if Path(self.path).is_file():
            return file_of(str(Path(self.path).parent), name)
        return file_of(self.path, str(PurePosixPath(self._file()).with_name(name)), self.hub_revision)

    def _base_state(self) -> dict[str, Tensor]:
        """The base's own weights, with as many embeddings as the tokenizer has tokens."""
        from transformers import AutoModel

        model = pretrained(AutoModel, self.base, self.base_revision, DTYPES[self.dtype], allowed=("lm_head.weight",))
        state: dict[str, Tensor] = model.state_dict()
        return state | {EMBEDDINGS: state[EMBEDDINGS][: len(self._processor.tokenizer)]}

    def _load_processor(self) -> Any:
        from tokenizers import AddedToken
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(self.base, revision=self.base_revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the processor of '{self.base}': {str(error).splitlines()[0]}") from error
        processor.tokenizer.padding_side = "right"
        processor.tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in self.tokens])
        return processor

    def _make_backbone(self, state: dict[str, Tensor], file: str) -> Any:
        """The backbone without values, with as many embeddings as the file has."""
        from transformers import AutoConfig, AutoModel
        from transformers.initialization import no_init_weights

        try:
            config = AutoConfig.from_pretrained(self.base, revision=self.base_revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the config of '{self.base}': {str(error).splitlines()[0]}") from error
        if config.model_type not in BACKBONES:
            raise UserError(f"'{self.base}' is a {config.model_type}; expected one of {', '.join(BACKBONES)}")
        if EMBEDDINGS not in state:
            raise UserError(f"'{file}' lacks weights: {EMBEDDINGS}")
        rows, known = len(state[EMBEDDINGS]), len(self._processor.tokenizer)
        if rows != known:
            raise UserError(
                f"'{file}' has {rows} token embeddings, and the tokenizer of '{self.base}' with the reward tokens {known} tokens; "
                "is `base` the backbone it was trained from?"
            )
        config.text_config.vocab_size = rows
        with no_init_weights():
            return AutoModel.from_config(config, dtype=DTYPES[self.dtype])

    @property
    def factor(self) -> int:
        """Sides of media are multiples of so many pixels."""
        images = self._processor.image_processor
        return int(images.patch_size * images.merge_size)

    def question(self, prompt: str, rubric: int = 0) -> str:
        """The text of a row. Raises ValueError for a prompt that holds a special token."""
        check_free(prompt, (*self.tokens, *MEDIA))
        return self._rubrics[rubric].about(prompt)

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states `(B, K, D)` float32 of the rows at the reward tokens, in batches."""
        found = []
        ids = self._processor.tokenizer.convert_tokens_to_ids(list(self.tokens))
        with torch.inference_mode():
            for start in range(0, len(rows), self.batch_size):
                inputs = encode(self._processor, rows[start : start + self.batch_size], self._device)
                found.append(self._model(inputs, places(inputs["input_ids"], ids), self.positions))
            return torch.cat(found)


def two_outputs(width: int) -> nn.Sequential:
    """The head of HPSv3 and of each pass of EditReward: width-1024-16-2; the first output is the reward."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def means(owners: Sequence[int], values: Sequence[float], count: int) -> list[float | None]:
    """Mean of the values of each of `count` samples; None for one without any."""
    own: list[list[float]] = [[] for _ in range(count)]
    for owner, value in zip(owners, values, strict=True):
        own[owner].append(value)
    return [float(np.mean(one)) if one else None for one in own]
