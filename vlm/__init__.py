"""Vision-language models that write tokens."""

COMPONENTS: dict[str, dict[str, str]] = {
    "policy": {
        "tiny_qwen3vl": "mmrl.vlm.models:TinyQwen3VL",
        "vlm": "mmrl.vlm.models:Vlm",
    }
}
