"""What MMDetection 3 writes down while it trains."""

from pathlib import Path
from typing import Any

from ..report import parse_log


def read_log(work_dir: Path, per_epoch: int | None) -> list[dict[str, Any]]:
    """The lines of all mmengine's JSON logs in `work_dir`, in the order of training, in the form of MMDetection 2.28's.

    Of what a resumed run trained again, its own line counts. The first training line of each log is marked as
    `warm_up`: workers start, memory is allocated. Each line is `at` so many epochs, or iterations; an evaluation in a
    training without epochs, of which mmengine writes no number, at that of the line before it.

    Args:
        per_epoch: iterations in an epoch, or None for a training without epochs.
    """
    lines = {}
    for path in sorted(work_dir.glob("*/vis_data/[0-9]*_[0-9]*.json")):
        warm_up, trained = True, 0
        for line in parse_log(path):
            step = line["step"]
            if "loss" in line:
                line |= {"mode": "train", "warm_up": warm_up, "at": step / per_epoch if per_epoch else step}
                warm_up, trained = False, step
            else:
                line = {name.rpartition("/")[2]: value for name, value in line.items()}
                line |= {"mode": "val", "at": step if per_epoch else trained}
            lines[line["at"], line["mode"] == "val"] = line
    return [lines[key] for key in sorted(lines)]
