"""Writes a checkpoint, which has its config in it, as an ONNX file, and compares that with the detector.

    python -m yolox_plugin.export --pth-path=work_dirs/mine/latest.pth --out model.onnx
    python -m yolox_plugin.export ... --nms --check=coco2017

docs/export.md has its inputs, outputs, operators and metadata. The exit status is 0 after a complete run, 1 if the file
did not compute what the detector does, and 2 if something in the command is wrong; nothing has been written then.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from . import annotations, evaluate, folders, launch, report
from .exported import Exported, thresholds_of
from .failures import explained
from .messages import InputError, warn
from .model_input import ModelInput, input_of
from .options import options_of, positive, user_path
from .predictor import Detector

MULTIPLE = 32  # of sizes: the largest stride


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--pth-path", type=user_path, required=True, metavar="FILE", help="the checkpoint")
    add("--out", type=user_path, required=True, metavar="FILE", help="the file to write, a new one")
    add("--config", metavar="NAME|FILE", help="default: the config in the checkpoint")
    add("--img-size", type=positive, nargs="+", metavar="N",
        help=f"one number, or height and width, multiples of {MULTIPLE} (default: the test pipeline's)")  # fmt: skip
    add("--nms", action="store_true", help="one output more, of detections after ONNX's NonMaxSuppression")
    add("--opset", type=int, choices=(11, 12, 13), default=11, help="ONNX's version (default: %(default)s)")
    add("--check", type=user_path, metavar="DIR",
        help="compare the mAP of file and detector on what this data set has for validation")  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then exports. Returns the exit status."""
    args = parser().parse_args(options_of(sys.argv[1:] if arguments is None else arguments))
    try:
        check(args)
        detector = Detector(args.pth_path, args.config, "cpu")
        return export(args, detector)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return launch.interrupted()
    except Exception as error:
        return explained(error)


def check(args: argparse.Namespace) -> None:
    """Raises InputError for what can be told before the checkpoint is read."""
    if not is_there("onnx"):
        raise InputError("an export needs the package onnx: pip install onnx onnxruntime")
    if args.check is not None and not is_there("onnxruntime"):
        raise InputError("--check needs the package onnxruntime: pip install onnx onnxruntime")
    if args.check is not None and not args.check.is_dir():
        raise InputError(f"--check {args.check} is not a folder")
    if os.path.lexists(args.out):
        raise InputError(f"--out {args.out} exists already, and would be overwritten: name another")
    folders.check_folder("--out", args.out)
    if args.img_size is not None:
        if len(args.img_size) > 2:
            raise InputError(f"--img-size must be one number, or height and width, got {len(args.img_size)} numbers")
        check_size("--img-size", args.img_size)


def is_there(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def check_size(what: str, size: Sequence[int]) -> None:
    """Raises InputError for a size that the network's strides do not divide."""
    if any(number % MULTIPLE for number in size):
        raise InputError(f"{what} must be multiples of {MULTIPLE}, got {' x '.join(map(str, size))}")


def export(args: argparse.Namespace, detector: Detector) -> int:
    """Writes the file, under its name when it has been compared with the detector; the exit status."""
    from . import onnx_file  # here onnx is known to be there

    model = detector.network.model
    Exported(model, (MULTIPLE, MULTIPLE))  # to see whether it is one
    seen = input_of(detector.network)
    size = (args.img_size[0], args.img_size[-1]) if args.img_size else seen.size
    check_size("the size of the config's test pipeline", size)
    thresholds = thresholds_of(model)
    if thresholds is None and (args.nms or args.check):
        raise InputError(f"--{'nms' if args.nms else 'check'} knows MMDetection's nms alone, not the config's test_cfg")
    if args.check is not None and size != seen.size:
        raise InputError(f"--check needs images of the test pipeline's size: leave --img-size out, or name {seen.size}")
    evaluation = evaluation_of(args) if args.check is not None else None
    network = Exported(model, size, thresholds, args.nms)
    properties = {
        "version": report.versions().get("yolox-ops", "unknown"),
        "classes": detector.classes,
        "size": size,
        "padding": seen.padding,
        "channels": seen.channels,
        "values": [0, 255],
        "score_threshold": thresholds and thresholds.score,
        "iou_threshold": thresholds and thresholds.iou,
        "max_detections": thresholds and thresholds.max_detections,
    }
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=args.out.absolute().parent) as folder:
        file = Path(folder, "model.onnx")
        shapes = onnx_file.write(network, file, size, args.opset, properties)
        try:
            result = compared(file, network, seen, size, evaluation)
        except onnx_file.Different as error:
            print(f"error: {error}; {args.out} was not written", file=sys.stderr)
            return 1
        file.rename(args.out)
    megabytes = args.out.stat().st_size / 1e6
    print(f"{args.out}: {megabytes:.1f} MB, opset {args.opset}, {shapes[0]} to {', '.join(shapes[1:])}; {result}")
    return 0


def compared(file: Path, network: Exported, seen: ModelInput, size: tuple[int, int], evaluation: Any) -> str:
    """How the file differs from the detector, in words.

    Raises:
        Different: too much.
    """
    from . import onnx_file

    if not is_there("onnxruntime"):
        warn("the file was not compared with the detector, as onnxruntime is not there: pip install onnxruntime")
        return "not compared"
    session = onnx_file.Session(file)
    if evaluation is not None:
        compare_accuracy(evaluation, session, network)
    images = samples(size, seen.padding)
    boxes, scores = (max(pair) for pair in zip(*(onnx_file.compare(session, network, images[:n]) for n in (1, 2)),
                                               strict=True))  # fmt: skip
    milliseconds = session.milliseconds(images[:1])
    return (
        f"from the detector's boxes at most {boxes:.2g} pixels, from its scores {scores:.2g}; {milliseconds:.1f} ms an"
        " image in onnxruntime"
    )


def samples(size: tuple[int, int], padding: float) -> torch.Tensor:
    """A wide image and a tall one of random colours that flow into each other, as the network sees them: of mere noise,
    a network makes numbers that float32 has few digits of."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (2, 3, 8, 8), generator=generator).float()
    images = interpolate(colours, size, mode="bilinear").round()
    images[0, :, size[0] // 2 :] = images[1, :, :, size[1] // 2 :] = padding
    return images


def evaluation_of(args: argparse.Namespace) -> Any:
    """The detector's evaluation on the data set of --check.

    Raises:
        InputError: it cannot be.
    """
    options = [f"--data-path={args.check}", f"--pth-path={args.pth_path}", "--device=cpu"]
    asked = evaluate.parser().parse_args([*options, *([f"--config={args.config}"] if args.config else [])])
    cfg = evaluate.load_config(asked)
    source = evaluate.checked(asked, cfg)
    if not annotations.has_gts(source):
        raise InputError(f"--check: {source.path} has no annotations, so that there is no mAP")
    evaluation = evaluate.host.Evaluation(cfg, args.pth_path)
    evaluation.shows_progress = sys.stdout.isatty()
    return evaluation


def compare_accuracy(evaluation: Any, session: Any, network: Exported) -> None:
    """Prints the mAP of the detector and of the file.

    Raises:
        Different: they differ in the first three decimals.
    """
    from . import onnx_file

    def found_in(images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        outputs = session(images)
        detections = outputs[2] if network.suppresses else network.detections(*outputs)
        each = [rows[rows[:, 4] > 0] for rows in detections]
        return [(rows[:, :5], rows[:, 5].long()) for rows in each]

    expected = evaluation.figures(evaluation.detect())["mAP"]
    found = evaluation.figures(evaluation.detect_by(found_in))["mAP"]
    print(f"mAP {found:.4f} of the file, {expected:.4f} of the detector, {len(evaluation.dataset)} images")
    if abs(found - expected) >= 0.0005:
        raise onnx_file.Different(f"the exported network has mAP {found:.4f}, the detector {expected:.4f}")
