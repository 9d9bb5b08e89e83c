"""What ends a training and is not in its code: a sentence about each, in the place of a traceback."""

import datetime
import errno
import os
import re
import sys
import time
from typing import Any

import torch.distributed as dist

from ..core.images import UnreadableImage
from ..core.ranks import rank_and_world_size

# Of disks that take no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
ANSWER_WITHIN = 5  # seconds, of ranks that are asked whether they are there
_KILLED_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: ([\w ]+)|exited unexp)")
_NO_SHARED_MEMORY = re.compile(r"unable to \w+ shared memory\(shm\)|unable to (write|resize|mmap).*</torch_")
_OF_GROUP = re.compile(r"gloo|NCCL|HCCL|Connection (closed|reset)|[Tt]imed out|TCPStore|process group|peer")
_OF_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")


def explained(error: Exception) -> int:
    """Prints the sentence about an error; the status to end with. Raises the error if there is none."""
    sentence = sentence_about(error)
    if sentence is None:
        raise error
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return 1


def sentence_about(error: Exception) -> str | None:
    """What the user can do something about; None for an error that its traceback tells more of."""
    text = str(error)
    if _OF_WORKER.match(text) and isinstance(error, (OSError, UnreadableImage)):
        return text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, UnreadableImage):
        return text
    if isinstance(error, OSError) and (error.errno in FULL or error.filename):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if killed := _KILLED_WORKER.search(f"{error.__cause__} {text}"):
        return _of_killed_worker((killed[2] or "").strip())
    if is_of_shared_memory(error):
        return _of_killed_worker("Bus error")
    if isinstance(error, RuntimeError) and _OF_GROUP.search(text) and (absent := absent_ranks()):
        named = f"process {absent[0]}" if len(absent) == 1 else f"processes {', '.join(map(str, absent))}"
        return f"{named} of {rank_and_world_size()[1]} did not answer: {text.strip().splitlines()[0]:.200}"
    return None


def is_of_shared_memory(error: Exception) -> bool:
    """Whether /dev/shm had no room."""
    return bool(_NO_SHARED_MEMORY.search(str(error)))


def _of_killed_worker(signal: str) -> str:
    if signal == "Bus error":
        size = os.statvfs("/dev/shm")
        return (
            f"/dev/shm, with {size.f_blocks * size.f_frsize / 2**20:.0f} MB, is too small for the images that"
            " data-loading workers hand over: make it larger (docker run --shm-size=8g), or use fewer workers"
        )
    named = f"was killed ({signal})" if signal else "ended"
    return f"a data-loading worker {named}: if memory was short, as dmesg tells, use fewer workers or smaller batches"


def absent_ranks() -> list[int]:
    """Those that do not say within some seconds that they are there, when all that hear of an error ask for it."""
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return []
    names = [f"yolox_ops/there/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{i}" for i in range(world_size)]
    wait = datetime.timedelta(seconds=ANSWER_WITHIN)
    try:
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=wait
        )
        store.set(names[rank], "")
        end = time.monotonic() + ANSWER_WITHIN
        while (absent := [i for i, name in enumerate(names) if not store.check([name])]) and time.monotonic() < end:
            time.sleep(0.1)
    except RuntimeError:  # rank 0, which has the store, is gone
        return [0]
    return absent
