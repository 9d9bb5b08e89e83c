"""ONNX files of a detector: written by torch's exporter, run by onnxruntime. To be imported where onnx is there."""

import inspect
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from .exported import Exported
from .messages import InputError

OUTPUTS = ["boxes", "scores", "detections"]
# Of the largest number of a box, or of a prior's scores, but of a pixel or a hundredth at least: float32 has no more
# digits of smaller ones.
TOLERANCE = 1e-4
LEAST = {"boxes": 1.0, "scores": 0.01}


class Different(Exception):
    """A file does not compute what the detector does; the message is one sentence."""


def write(network: Exported, path: Path, size: tuple[int, int], opset: int, properties: dict[str, Any]) -> list[str]:
    """Writes and checks a file; its inputs and outputs in words.

    Args:
        properties: for the file, as JSON.

    Raises:
        InputError: the network has something that ONNX has not.
    """
    images = torch.zeros(1, 3, *size)
    # From torch 2.5 on there are two exporters; the other one needs one more package.
    older: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter is the older one, and that numbers are taken as constants
        shapes = [output.shape[1:] for output in network(images)]
        names = OUTPUTS[: len(shapes)]
        try:
            torch.onnx.export(
                network, (images,), str(path), opset_version=opset, input_names=["images"], output_names=names,
                dynamic_axes={name: {0: "N"} for name in ["images", *names]}, **older,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(f"the config's model has no form in ONNX: {' '.join(str(error).split()):.300}") from error
    model = onnx.load(str(path))
    for output, shape in zip(model.graph.output, shapes, strict=True):
        for dimension, number in zip(output.type.tensor_type.shape.dim[1:], shape, strict=True):
            dimension.dim_value = number
    model.producer_name, model.producer_version = "yolox-ops", properties["version"]
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in properties.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return [f"{value.name} {_shape(value)}" for value in (*model.graph.input, *model.graph.output)]


def _shape(value: Any) -> str:
    numbers = (part.dim_param or str(part.dim_value) for part in value.type.tensor_type.shape.dim)
    return f"[{', '.join(numbers)}]"


class Session:
    """A file in onnxruntime, on as many threads of the CPU as torch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The file's outputs for images `[N, 3, H, W]`."""
        outputs = self._session.run(None, {"images": images.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    def milliseconds(self, images: Tensor, times: int = 5) -> float:
        """The median time for these images."""
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            self(images)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) * 1000


@torch.no_grad()
def compare(session: Session, network: Exported, images: Tensor) -> list[float]:
    """How far boxes, in pixels, and scores of a file are from the network's, at most. Its detections have to be those
    of its own boxes and scores, as a last bit of a score may decide.

    Raises:
        Different: further than `TOLERANCE`.
    """
    found, expected = session(images), network(images)
    distances = []
    for (name, least), mine, theirs in zip(LEAST.items(), found, expected, strict=False):
        if not theirs.isfinite().all():
            raise Different(f"{name} of the detector are not finite (images: {len(images)})")
        far = (mine - theirs).abs()
        allowed = TOLERANCE * theirs.abs().amax(-1, keepdim=True).clamp(min=least)
        if not (far <= allowed).all():  # as of a NaN
            raise Different(
                f"{name} of the exported network are up to {far.max():.3g} from the detector's (images: {len(images)})"
            )
        distances.append(float(far.max()))
    if network.suppresses:
        kept = network.detections(found[0], found[1])
        # Which of two equal scores comes first is open.
        if any(sorted(mine) != sorted(theirs) for mine, theirs in zip(found[2].tolist(), kept.tolist(), strict=True)):
            raise Different(f"detections of the exported network are not those of its boxes (images: {len(images)})")
    return distances
