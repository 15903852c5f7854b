"""Prompt sources, supervised examples and procedural worlds."""

COMPONENTS: dict[str, dict[str, str]] = {
    "prompts": {
        "hf": "mmrl.data.hf:HfPrompts",
        "jsonl": "mmrl.data.jsonl:JsonlPrompts",
        "list": "mmrl.data.inline:ListPrompts",
        "shapes": "mmrl.data.shapes.source:ShapesPrompts",
        "txt": "mmrl.data.txt:TxtPrompts",
    },
    "examples": {
        "folder": "mmrl.data.pairs:FolderExamples",
        "jsonl": "mmrl.data.pairs:JsonlExamples",
        "shapes": "mmrl.data.shapes.source:ShapesExamples",
    },
}
