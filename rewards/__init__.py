"""Rewards: verifiable, preference, judge, remote, and their composition."""

COMPONENTS: dict[str, dict[str, str]] = {
    "reward": {
        "anls": "mmrl.rewards.verifiable.edits:Anls",
        "bbox_iou": "mmrl.rewards.verifiable.grounding:BboxIou",
        "choice": "mmrl.rewards.verifiable.words:Choice",
        "cosine_length": "mmrl.rewards.verifiable.length:CosineLength",
        "count": "mmrl.rewards.verifiable.numeric:Count",
        "exact": "mmrl.rewards.verifiable.words:Exact",
        "format": "mmrl.rewards.verifiable.form:FormatReward",
        "function": "mmrl.rewards.function:FunctionReward",
        "jpeg_compressibility": "mmrl.rewards.jpeg:JpegCompressibility",
        "jpeg_incompressibility": "mmrl.rewards.jpeg:JpegIncompressibility",
        "math": "mmrl.rewards.verifiable.mathematics:MathReward",
        "number": "mmrl.rewards.verifiable.numeric:NumberReward",
        "ocr_edit": "mmrl.rewards.verifiable.edits:EditSimilarity",
        "overlong": "mmrl.rewards.verifiable.length:Overlong",
        "permutation": "mmrl.rewards.verifiable.orders:Permutation",
        "point_in_box": "mmrl.rewards.verifiable.grounding:PointInBox",
        "relaxed_number": "mmrl.rewards.verifiable.numeric:RelaxedNumber",
        "repetition": "mmrl.rewards.verifiable.repetition:Repetition",
        "shapes": "mmrl.data.shapes.reward:ShapeReward",
        "temporal_iou": "mmrl.rewards.verifiable.grounding:TemporalIou",
        "yes_no": "mmrl.rewards.verifiable.words:YesNo",
    },
}
