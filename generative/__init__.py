"""Flow-matching and diffusion models that denoise images or videos."""

COMPONENTS: dict[str, dict[str, str]] = {
    "policy": {
        "sd3": "mmrl.generative.families.sd3:SD3",
        "sd15": "mmrl.generative.families.sd15:SD15",
        "tiny_sd3": "mmrl.generative.families.tiny:TinySD3",
        "tiny_sd15": "mmrl.generative.families.tiny:TinySD15",
    }
}
