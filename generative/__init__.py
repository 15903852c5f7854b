"""Flow-matching and diffusion models that denoise images or videos."""

COMPONENTS: dict[str, dict[str, str]] = {
    "policy": {
        "sd3": "mmrl.generative.families.sd3:SD3",
        "sd15": "mmrl.generative.families.sd15:SD15",
        "qwen_image": "mmrl.generative.families.qwen_image:QwenImage",
        "qwen_edit": "mmrl.generative.families.qwen_edit:QwenEdit",
        "qwen_edit_plus": "mmrl.generative.families.qwen_edit:QwenEditPlus",
        "flux": "mmrl.generative.families.flux:Flux",
        "flux_kontext": "mmrl.generative.families.flux:FluxKontext",
        "sdxl": "mmrl.generative.families.sdxl:SDXL",
        "kandinsky5": "mmrl.generative.families.kandinsky5:Kandinsky5",
        "kandinsky5_image": "mmrl.generative.families.kandinsky5:Kandinsky5Image",
        "wan": "mmrl.generative.families.wan:Wan",
        "wan_image": "mmrl.generative.families.wan:WanImage",
        "tiny_sd3": "mmrl.generative.families.tiny:TinySD3",
        "tiny_sd15": "mmrl.generative.families.tiny:TinySD15",
    },
    "surrogate": {
        "awm": "mmrl.generative.forward.awm:Awm",
        "crd": "mmrl.generative.forward.crd:Crd",
        "dgpo": "mmrl.generative.forward.dgpo:Dgpo",
        "diffusion_dpo": "mmrl.generative.forward.dpo:DiffusionDpo",
        "flow_dppo": "mmrl.generative.forward.guard:FlowDppo",
        "guard": "mmrl.generative.forward.guard:Guard",
        "nft": "mmrl.generative.forward.nft:Nft",
    },
}
