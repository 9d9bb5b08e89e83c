"""What a command makes of signals to end, and of what ends a training from outside; tests/faults does all that to real
trainings."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from tiny import ENV

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.core.images import UnreadableImage
from yolox_plugin.run import launch
from yolox_plugin.run import train as training
from yolox_plugin.run.failures import sentence_about


@pytest.mark.parametrize("number", launch.ENDING)
def test_a_signal_to_end_is_heard_once(number):
    """A scheduler may send it to a process to which the command hands it on, too."""
    before, heard = signal.getsignal(number), []
    with launch.signals_to(heard.append):
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert heard == [number]
    assert signal.getsignal(number) is before


def test_a_later_signal_ends_at_once():
    code = """
import os, signal
from yolox_plugin.run import launch
launch.TWICE = -1
with launch.signals_to(print):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never", flush=True)
"""
    process = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGTERM
    assert "never" not in process.stdout


def test_signals_are_handed_on_and_statuses_come_back():
    code = """
import os, signal, subprocess, sys, time
from yolox_plugin.run import launch
child = "import os, signal, sys; from yolox_plugin.run import launch; signal.signal(signal.SIGUSR1, lambda *_:"
child += " (launch.tell_ended(138), sys.exit(0))); print('ready', flush=True); signal.pause()"
with launch.told() as (heard, told):
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    while "ready" not in process.stdout.readline():
        pass
    os.kill(os.getpid(), signal.SIGUSR1)
    assert process.wait() == 0
print(heard, told, launch.ENDED in os.environ)
"""
    process = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert process.stdout.splitlines()[-1] == "[138] [138] False", process.stderr


def test_a_checkpoint_in_the_middle_is_kept_while_it_is_the_newest(data, config, tmp_path):
    """Of an epoch of four iterations."""
    work_dir = tmp_path / "run"
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={work_dir}"]
    assert training.main([*common, "--iterations=3", "--checkpoint-iterations=3"]) == 0
    assert newest_checkpoint(work_dir).resolve() == work_dir / "mid_epoch.pth"
    assert training.main([*common, "--iterations=6", "--resume"]) == 0
    assert newest_checkpoint(work_dir).resolve() == work_dir / "epoch_1.pth"
    assert not (work_dir / "mid_epoch.pth").exists()


def of_worker(kind, text):
    """As torch raises what a data-loading worker has raised."""
    try:
        raise kind(text)
    except kind:
        return torch._utils.ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 0")


def killed(words):
    error = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    error.__cause__ = RuntimeError(f"DataLoader worker (pid 12) is killed by signal: {words}")
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/log"), "No space left on device: run/log"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (UnreadableImage("1.jpg is no readable image (3 bytes)"), "1.jpg is no readable image (3 bytes)"),
        (of_worker(UnreadableImage, "1.jpg is no readable image"), "1.jpg is no readable image"),
        (of_worker(FileNotFoundError, "no 1.jpg"), "no 1.jpg"),
        (killed("Killed. "), "a data-loading worker was killed (Killed): if memory was short"),
        (killed("Bus error. It is possible that"), "/dev/shm, with "),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)"), "/dev/shm, with "),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "a data-loading worker ended: "),
        # Of these a traceback tells more.
        (RuntimeError("shape '[3]' is invalid"), None),
        (of_worker(KeyError, "img"), None),
        (OSError("something"), None),
    ],
)
def test_the_sentence_about_an_end(error, words):
    if not isinstance(error, Exception):
        with pytest.raises(error.exc_type) as raised:
            error.reraise()
        error = raised.value
    sentence = sentence_about(error)
    assert sentence is None if words is None else sentence.startswith(words)
    assert sentence is None or "\n" not in sentence
