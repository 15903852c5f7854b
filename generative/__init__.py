"""Flow-matching and diffusion models that denoise images or videos."""

COMPONENTS: dict[str, dict[str, str]] = {}
