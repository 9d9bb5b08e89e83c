"""What the detectors of both hosts do for their network: its parts, its layout and its precision."""

from typing import Any

from .network import quicken
from .precision import Precision


class PreparedDetector:
    """Before MMDetection's own detector, a module, among the base classes."""

    _is_for_inference = False

    def _prepare(self, autocast: str | None, device: str) -> None:
        """To be called by the constructor.

        Args:
            device: the kind that MMDetection chooses.
        """
        self._precision = Precision(autocast)
        quicken(self)  # type: ignore[arg-type]
        self.prepare_for(device)

    def prepare_for(self, device: str) -> None:
        """Lays the weights out for training on a kind of device; at first it is the one that MMDetection chooses."""
        self._precision.prepare(self, device)  # type: ignore[arg-type]

    def prepare_for_inference(self, device: str, autocast: str | None = None) -> None:
        """Makes the detector, with the weights that it has, one that detects faster on a kind of device and that does
        not train: batch norms are folded into the convolutions, so that the state_dict is another one.

        Args:
            autocast: "float32", "bfloat16" or "float16": the precision of the convolutions whose norms are folded.
                None is float32.

        Raises:
            ValueError: for a precision that there is not, or not on this device or for this network.
            RuntimeError: the second time.
        """
        if self._is_for_inference:
            raise RuntimeError(
                "this detector was prepared for inference already: build it again to prepare it otherwise"
            )
        device = str(device).partition(":")[0]
        precision = Precision(autocast)
        precision.prepare_for_inference(self, device)  # type: ignore[arg-type]
        self._precision, self._is_for_inference = precision, True

    def train(self, mode: bool = True) -> Any:
        """See the base class.

        Raises:
            RuntimeError: in training mode after `prepare_for_inference`.
        """
        if mode and self._is_for_inference:
            raise RuntimeError("this detector was prepared for inference: build it again to train it")
        return super().train(mode)  # type: ignore[misc]

    def init_weights(self) -> None:
        """See the stock class: the same weights from the same seed."""
        with self._precision.in_stock_layout(self):  # type: ignore[arg-type]
            super().init_weights()  # type: ignore[misc]
