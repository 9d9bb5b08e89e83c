"""Checkpoints of Megvii's YOLOX: the same network, with other names for its parts."""

import re
from collections.abc import Mapping
from typing import Any

# Each of Megvii's names and the one in MMDetection, applied in this order.
_NAMES = (
    (r"^backbone\.backbone\.stem\.", r"backbone.stem."),
    (r"^backbone\.backbone\.dark(\d)\.", lambda found: f"backbone.stage{int(found[1]) - 1}."),
    (r"^backbone\.lateral_conv0\.", "neck.reduce_layers.0."),
    (r"^backbone\.reduce_conv1\.", "neck.reduce_layers.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down_blocks.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down_blocks.1."),
    (r"^backbone\.bu_conv2\.", "neck.downsamples.0."),
    (r"^backbone\.bu_conv1\.", "neck.downsamples.1."),
    (r"^backbone\.C3_n3\.", "neck.bottom_up_blocks.0."),
    (r"^backbone\.C3_n4\.", "neck.bottom_up_blocks.1."),
    (r"^head\.stems\.", "neck.out_convs."),
    (r"^head\.(cls|reg)_convs\.", r"bbox_head.multi_level_\1_convs."),
    (r"^head\.(cls|reg|obj)_preds\.", r"bbox_head.multi_level_conv_\1."),
    (r"\.dconv\.", ".depthwise_conv."),
    (r"\.pconv\.", ".pointwise_conv."),
)
# The convolutions of a CSP layer, which has m; SPP's have the same names in both.
_CSP = {"conv1": "main_conv", "conv2": "short_conv", "conv3": "final_conv"}


def is_megvii(state: Mapping[str, Any]) -> bool:
    """Whether these names are of Megvii's YOLOX."""
    return all(isinstance(name, str) for name in state) and any(
        name.startswith("backbone.backbone.stem.") for name in state
    )


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of Megvii's YOLOX under MMDetection's names."""
    layers = {name[: name.index(".conv3.")] for name in state if ".conv3." in name}
    return {_renamed(name, layers): value for name, value in state.items()}


def _renamed(name: str, csp_layers: set[str]) -> str:
    for layer in csp_layers:
        if not name.startswith(f"{layer}."):
            continue
        part, _, rest = name[len(layer) + 1 :].partition(".")
        name = f"{layer}.blocks.{rest}" if part == "m" else f"{layer}.{_CSP.get(part, part)}.{rest}"
        break
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name
