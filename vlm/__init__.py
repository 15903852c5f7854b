"""Vision-language models that write tokens."""

COMPONENTS: dict[str, dict[str, str]] = {}
