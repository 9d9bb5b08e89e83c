"""Several processes of a command, through torchrun."""

import argparse
import contextlib
import ctypes
import datetime
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from ..core import ranks
from .failures import is_of_shared_memory
from .messages import InputError
from .options import TORCHRUN_OPTIONS

# The process that starts others, for these; and files of its: in which they say with which status they have ended, and
# in which it says which signal to end it has heard.
PARENT, ENDED, HEARD = "YOLOX_PLUGIN_PARENT", "YOLOX_PLUGIN_ENDED", "YOLOX_PLUGIN_HEARD"
PR_SET_PDEATHSIG = 1  # of Linux's prctl

# Seconds for which a command that has failed stays: the other machines' may ask the store in it, until they see by
# themselves how their processes have ended.
STAY = 5
# Seconds for which the machine with the store may not answer, when this one's processes have ended; and of one attempt.
ABSENT, ATTEMPT = 30, 5

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


def is_child() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def joined(device: str, minutes: float | None = None) -> Iterator[tuple[int, int]]:
    """With the other processes that torchrun started, if there are any: the rank and how many they are.

    Args:
        minutes: that one waits for another.
    """
    if is_child():
        end_with_parent()
    workers = _Workers()
    multiprocessing.util.register_after_fork(workers, _Workers.end_where_a_batch_is_lost)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    if device != "cpu":
        getattr(torch, device).set_device(int(os.environ["LOCAL_RANK"]))
    ranks.timeout = None if minutes is None else datetime.timedelta(minutes=minutes)
    dist.init_process_group(BACKENDS[device], **ranks.limits())
    # A thread of gloo's that still holds a tensor when Python ends aborts the process (pytorch/pytorch#190489). After
    # an error that ends this process alone, leaving might wait for the others for ever.
    try:
        yield dist.get_rank(), world_size
        dist.barrier()  # DistributedDataParallel never frees its group: the group's threads must have no work left
    except InputError:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends, however that ends: torchrun's agent, once
    killed, can tell its processes nothing, and they would train on, or hold the device, until somebody finds them."""
    parent = int(os.environ.get(PARENT, os.getppid()))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> int:
    """The exit status after Ctrl-C. One of several processes leaves it to the command to say so."""
    if not is_child():
        print("error: stopped by SIGINT", file=sys.stderr)
    return 128 + signal.SIGINT


# Those by which schedulers tell a job that it has to end.
ENDING = (signal.SIGTERM, signal.SIGUSR1)
TWICE = 5  # seconds after which a signal is a second one
AGREE_WITHIN = 3  # seconds, of the command and its processes on what they have heard


@contextlib.contextmanager
def signals_to(take: Callable[[int], None]) -> Iterator[None]:
    """Within it, `take` gets the number of a signal to end, once; another one, some seconds later, ends this process at
    once. Until then it may be the same, which a scheduler has sent to all processes and the command handed on."""
    before = {number: signal.getsignal(number) for number in ENDING}
    first: list[float] = []

    def heard(number: int, _: object) -> None:
        if not first:
            first.append(time.monotonic())
            take(number)
        elif time.monotonic() - first[0] > TWICE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in ENDING:
        signal.signal(number, heard)
    if HEARD in os.environ:
        _end_if_told_by_torchrun()
    workers = _Workers()
    multiprocessing.util.register_after_fork(workers, _Workers.listen_to_the_main_process_alone)
    if earlier := heard_by_command():  # before this process could
        take(earlier)
    try:
        yield
    finally:
        if HEARD in os.environ:
            signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Workers:
    """Stands, as long as it is there, for processes that this one forks, as those that load data."""

    def end_where_a_batch_is_lost(self) -> None:
        """In such a process. Python prints why a queue cannot hand something over, and goes on without it: the main
        process would wait for that batch for ever."""

        def end(error: Exception, _: object) -> None:
            if is_of_shared_memory(error):
                signal.raise_signal(signal.SIGBUS)  # as the kernel does where torch has not noticed
            traceback.print_exception(error)
            os._exit(1)

        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]

    def listen_to_the_main_process_alone(self) -> None:
        """In such a process. A scheduler tells all processes of a job to end: the main process, which then writes a
        checkpoint after an iteration, needs its workers for that. It ends them itself."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.set_wakeup_fd(-1)

        def wait() -> None:
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
                pass
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()


def heard_by_command() -> int:
    """The signal to end that the command, which started this process, has heard, or 0."""
    path = os.environ.get(HEARD)
    found = Path(path).read_bytes() if path else b""
    return found[0] if found else 0


def _end_if_told_by_torchrun() -> None:
    """SIGTERM of which the command has not heard is torchrun's own, after another process has failed: whoever waits for
    that one would not come to an end of its iteration. It may wait in a device's library, where Python calls no
    handler; so this is heard in another way."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(heard, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(AGREE_WITHIN)
        if not heard_by_command():
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def children() -> list[int]:
    """The processes that this one has started, and that have not ended."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(number) for number in found.split()]


def tell_ended(status: int) -> int:
    """Says to the command that this process, of several, has ended with a status; its own, which is returned, is then
    0, so that torchrun starts none again."""
    if ENDED not in os.environ:  # nobody asks
        return status
    with open(os.environ[ENDED], "ab", buffering=0) as file:
        file.write(bytes([status]))
    return 0


@contextlib.contextmanager
def told() -> Iterator[tuple[list[int], list[int]]]:
    """Within it, processes that this one starts are given a signal to end that it gets. After it, the first list has
    the status that stands for that, and the second those that processes have ended with because of one."""
    heard: list[int] = []
    statuses: list[int] = []

    def hand_on(number: int) -> None:
        heard.append(128 + number)
        os.write(said.fileno(), bytes([number]))
        for child in children():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(child, number)

    with (
        os.fdopen(os.memfd_create("ended"), "r+b") as file,
        os.fdopen(os.memfd_create("heard"), "r+b") as said,
        signals_to(hand_on),
    ):
        os.environ[ENDED], os.environ[HEARD] = (f"/proc/{os.getpid()}/fd/{f.fileno()}" for f in (file, said))
        try:
            yield heard, statuses
        finally:
            del os.environ[ENDED], os.environ[HEARD]
            file.seek(0)
            statuses.extend(file.read())


@contextlib.contextmanager
def ending_without_store(endpoint: str) -> Iterator[None]:
    """Within it, this process ends with status 1 if all that it has started have, and the machine at `endpoint`, where
    torchrun's store is, does not answer. When a machine has lost its power or its network, nothing tells the others so,
    and torchrun waits for its store without end, or for minutes, whatever time-outs it was given."""
    place = parse_rendezvous_endpoint(endpoint, default_port=29400)
    over = threading.Event()

    def watch() -> None:
        started, absent_since = False, None
        while not over.wait(1):
            running = any(map(_runs, children()))
            started = started or running
            if not started or running or _answers(place):
                absent_since = None
                continue
            absent_since = absent_since or time.monotonic()
            if time.monotonic() - absent_since > ABSENT and not over.is_set():
                words = f"error: {endpoint}, where the machines meet, does not answer: it or the network is down"
                print(words, file=sys.stderr, flush=True)
                os._exit(1)  # the main thread waits in a call that nothing ends

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _runs(child: int) -> bool:
    """Whether it has not ended, be it that nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=ATTEMPT).close()
    except OSError:
        return False
    return True


# A process of torchrun's, which finds modules where this one does: after `python -m` in the current folder as well, but
# not if a script has kept that out.
CHILD = "import runpy, sys; sys.path[:] = {path!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def run_processes(module: str, arguments: Sequence[str], args: argparse.Namespace, device: str, restarts: int) -> int:
    """Runs `module` in --devices processes under torchrun, on a free port; its exit status, or less than 0, a signal's
    number, if one has ended a process.

    When a process ends with an error all are ended, and started again up to `restarts` times. Status 2, of an error
    that a process has explained, is passed on.
    """
    if device == "cpu":  # or each would use all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // args.devices, 1)))
    # Or processes that start again may find the addresses of those before them in torchrun's store, and wait for ever.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[PARENT] = str(os.getpid())
    passed = [
        f"{option}={value}"
        for option in TORCHRUN_OPTIONS
        if (value := getattr(args, option[2:].replace("-", "_"))) is not None
    ]
    command = [f"--nproc-per-node={args.devices}", f"--max-restarts={restarts}", *(passed or ["--standalone"])]
    try:
        program = [sys.executable, "-u", "-c", CHILD.format(path=sys.path, module=module)]
        options = torchrun.parse_args([*command, "--no-python", *program, *arguments])  # type: ignore[no-untyped-call]
        if ENDED in os.environ and hasattr(options, "signals_to_handle"):
            # On SIGTERM torchrun would give its processes half a minute; an older one does.
            options.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
        of_store = args.nnodes is not None and options.rdzv_backend == "c10d" and options.rdzv_endpoint
        with ending_without_store(options.rdzv_endpoint) if of_store else contextlib.nullcontext():
            torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        if args.nnodes is not None:
            time.sleep(STAY)
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            return 2
        ended = failure.exitcode if failure.exitcode < 0 else 1
        ending = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}, its error is above"
        after = f" after {restarts} restarts" if restarts else ""
        of = f"of {args.devices}"
        if args.nnodes is not None:
            of, after = "on this machine", f"{after}; if that is a lost connection, look at the other machines' errors"
        print(f"error: process {rank} {of} ended with {ending}{after}", file=sys.stderr)
        return ended
    except RendezvousError as error:
        print(
            f"error: the other machines have ended, or did not come: {type(error).__name__}: {error}", file=sys.stderr
        )
        return 1
    except SignalException as error:
        print(f"error: stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    finally:
        del os.environ[PARENT]
    return 0
