"""What the plugin's runner tells detector and data sets. Under another runner they hear nothing, and are as stock's."""

from typing import NamedTuple


class Moment(NamedTuple):
    """The beginning of an epoch: all that its random draws may depend on, and what becomes of its images."""

    seed: int
    epoch: int = 0
    iteration: int = 0  # of the whole training
    rank: int = 0
    takes_uint8: bool = False  # whether the detector converts images itself


class TrainingPart:
    """A detector or data set that a runner tells of its epochs. In between it behaves as the stock class."""

    def start_epoch(self, moment: Moment) -> None:
        """Before the epoch's first sample is asked for, and before its workers start."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began."""
        raise NotImplementedError
