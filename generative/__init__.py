"""Flow-matching and diffusion models that denoise images or videos."""

COMPONENTS: dict[str, dict[str, str]] = {
    "policy": {
        "sd3": "mmrl.generative.models:SD3",
        "sd15": "mmrl.generative.models:SD15",
        "tiny_sd3": "mmrl.generative.models:TinySD3",
        "tiny_sd15": "mmrl.generative.models:TinySD15",
    }
}
