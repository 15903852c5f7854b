"""Real tokenizers for tiny text encoders: the words, and the phrases, of captions about coloured shapes.

"a blue square left of a green triangle"  ->  words:   blue square left_of green triangle <eos>
                                              phrases: blue_square_left_of green_triangle
"""

from __future__ import annotations

from typing import Any

COLORS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
COUNTS = ("one", "two", "three")
SPECIAL = ("<pad>", "<eos>", "<unk>")
WORDS = (*SPECIAL, *COUNTS, *COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), "left_of", "above")
PHRASES = (
    *SPECIAL,
    *COUNTS,
    *(f"{c}_{s}{end}" for c in COLORS for s in SHAPES for end in ("", "s", "_left_of", "_above")),
)
WORD_TOKENS = 6
"""The longest caption has five words, "a" being dropped and "left of" being one, and an end."""
PHRASE_TOKENS = 2


def word_tokenizer() -> Any:
    """One token per word, ended by <eos>, padded to WORD_TOKENS."""
    from tokenizers import Regex, normalizers, pre_tokenizers, processors

    core = _word_level(WORDS)
    joined = normalizers.Replace("left of", "left_of")
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), joined, normalizers.Replace(Regex(r"\ban? "), "")])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return _wrapped(core, WORD_TOKENS)


def phrase_tokenizer() -> Any:
    """One token per count or thing, a thing carrying the relation that follows it; padded to PHRASE_TOKENS."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    core = _word_level(PHRASES)
    glued = [normalizers.Replace(f" {relation}", f"_{relation.replace(' ', '_')}") for relation in ("left of", "above")]
    glued += [normalizers.Replace(f"{color} ", f"{color}_") for color in COLORS]
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\ban? "), ""), *glued])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(core, PHRASE_TOKENS)


def _word_level(vocabulary: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))


def _wrapped(core: Any, length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )
