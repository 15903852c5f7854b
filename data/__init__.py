"""Prompt sources, supervised examples, procedural worlds and puzzles."""

COMPONENTS: dict[str, dict[str, str]] = {
    "prompts": {
        "hf": "mmrl.data.hf:HfPrompts",
        "jsonl": "mmrl.data.jsonl:JsonlPrompts",
        "list": "mmrl.data.inline:ListPrompts",
        "moving_shapes": "mmrl.data.moving_shapes.source:MovingShapesPrompts",
        "puzzles": "mmrl.data.puzzles.source:PuzzlePrompts",
        "shape_edits": "mmrl.data.shape_edits.source:ShapeEditPrompts",
        "shapes": "mmrl.data.shapes.source:ShapesPrompts",
        "txt": "mmrl.data.txt:TxtPrompts",
    },
    "examples": {
        "chat": "mmrl.data.chat:ChatExamples",
        "folder": "mmrl.data.pairs:FolderExamples",
        "jsonl": "mmrl.data.pairs:JsonlExamples",
        "moving_shapes": "mmrl.data.moving_shapes.source:MovingShapesExamples",
        "preference": "mmrl.data.preference:PreferenceExamples",
        "puzzles": "mmrl.data.puzzles.source:PuzzleExamples",
        "shape_edits": "mmrl.data.shape_edits.source:ShapeEditExamples",
        "shapes": "mmrl.data.shapes.source:ShapesExamples",
    },
    "puzzle": {
        "counting_video": "mmrl.data.puzzles.counting_video:CountingVideo",
        "count_shapes": "mmrl.data.puzzles.count_shapes:CountShapes",
        "jigsaw": "mmrl.data.puzzles.jigsaw:Jigsaw",
        "locate": "mmrl.data.puzzles.locate:Locate",
        "maze": "mmrl.data.puzzles.maze:Maze",
        "patch_fit": "mmrl.data.puzzles.patch_fit:PatchFit",
        "relation": "mmrl.data.puzzles.relation:Relation",
        "rotation": "mmrl.data.puzzles.rotation:Rotation",
        "temporal_anomaly": "mmrl.data.puzzles.temporal_anomaly:TemporalAnomaly",
        "temporal_jigsaw": "mmrl.data.puzzles.temporal_jigsaw:TemporalJigsaw",
    },
    "pictures": {
        "digits": "mmrl.data.puzzles.pictures:DigitPictures",
        "folder": "mmrl.data.puzzles.pictures:FolderPictures",
        "procedural": "mmrl.data.puzzles.pictures:Procedural",
        "skimage": "mmrl.data.puzzles.pictures:PhotographPictures",
    },
    "reward": {
        "moving_shapes": "mmrl.data.moving_shapes.reward:MovingShapesReward",
        "puzzle": "mmrl.data.puzzles.reward:PuzzleReward",
        "shape_edits": "mmrl.data.shape_edits.reward:ShapeEditReward",
    },
}
