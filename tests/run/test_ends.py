"""What a command makes of signals to end, and of what ends a training from outside; tests/faults does all that to real
trainings."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import ENV, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.core.images import UnreadableImage
from yolox_plugin.run import checks, failures, launch
from yolox_plugin.run import train as training
from yolox_plugin.run.failures import sentence_about
from yolox_plugin.run.messages import InputError


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


BLOCKED = """
import ctypes
from yolox_plugin.run import launch
c, mutex, condition = ctypes.CDLL(None), ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
with launch.signals_to(print):
    print("ready", flush=True)
    c.pthread_mutex_lock(mutex)
    c.pthread_cond_wait(condition, mutex)  # where no handler of Python's is called
"""


@pytest.mark.parametrize("by_command", [False, True])
def test_torchrun_ends_a_rank_that_waits_for_another(tmp_path, by_command):
    """In a device's library, for instance; not if the signal is the command's, which wants a checkpoint."""
    heard = tmp_path / "heard"
    heard.write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], env=ENV | {launch.HEARD: str(heard)}, stdout=subprocess.PIPE, text=True
    )
    try:
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        if by_command:
            heard.write_bytes(bytes([signal.SIGTERM]))
        process.terminate()
        if by_command:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(launch.AGREE_WITHIN + 2)
        else:
            assert process.wait(60) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


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


def test_a_training_that_was_stopped_in_its_last_evaluation(data, config, tmp_path, capfd):
    """Nothing is left to train, but a result is missing."""
    work_dir = tmp_path / "run"
    command = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={work_dir}", "--epochs=2",
               "--cfg-options", *small.EVERY_EPOCH]  # fmt: skip
    assert training.main(command) == 0
    result = json.loads((work_dir / "result.json").read_text())
    last = newest_checkpoint(work_dir).resolve()
    content = torch.load(last, weights_only=False)
    assert "evaluation_due" not in content["meta"]
    assert training.main([*command[:5], "--resume", *command[5:]]) == 2
    assert "has 2 of 2 epochs: nothing is left to train; python -m yolox_plugin.test" in capfd.readouterr().err
    content["meta"]["evaluation_due"] = True
    torch.save(content, last)
    (work_dir / "result.json").unlink()
    assert training.main([*command[:5], "--resume", *command[5:]]) == 0
    again = json.loads((work_dir / "result.json").read_text())
    assert again["mAP"] is not None and again["mAP"] == result["mAP"] and again["epochs"] == 2
    assert "evaluation_due" not in torch.load(last, weights_only=False)["meta"]


def test_a_process_hears_what_the_command_has_heard_before_it_began():
    code = """
import os, signal, subprocess, sys
from yolox_plugin.run import launch
child = "from yolox_plugin.run import launch\\nwith launch.signals_to(print): pass"
with launch.told():
    os.kill(os.getpid(), signal.SIGTERM)
    subprocess.run([sys.executable, "-c", child], check=True)
"""
    process = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert process.stdout.splitlines()[-1] == str(int(signal.SIGTERM)), process.stderr


def test_nobody_asks_for_a_status(monkeypatch):
    """As where plain torchrun has started the processes."""
    monkeypatch.delenv(launch.ENDED, raising=False)
    assert launch.tell_ended(143) == 143


def test_processes_that_load_data_are_ended_by_the_main_process_alone():
    """Whatever their data set, as those of an evaluation that live on."""
    with launch.signals_to(print):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        worker.start()
        try:
            worker.join(0.5)  # it has begun to listen
            subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)
            worker.join(1)
            assert worker.is_alive()
            worker.terminate()
            worker.join(20)
            assert worker.exitcode == 0
        finally:
            worker.kill()


def test_an_error_of_this_process_is_not_the_others(monkeypatch):
    monkeypatch.setattr(failures, "absent_ranks", lambda: [1])
    monkeypatch.setattr(failures, "rank_and_world_size", lambda: (0, 2))
    assert sentence_about(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")) is None
    lost = sentence_about(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    assert lost.startswith("process 1 of 2 did not answer: [gloo")


def test_a_runner_that_knows_no_middle_of_epochs(tmp_path):
    (tmp_path / "mid_epoch.pth").touch()
    (tmp_path / "latest.pth").symlink_to("mid_epoch.pth")
    checks.check_goes_on(tmp_path / "latest.pth", within_epochs=True)
    checks.check_goes_on(tmp_path / "epoch_1.pth", within_epochs=False)
    checks.check_goes_on(None, within_epochs=False)
    with pytest.raises(InputError, match=r"mid_epoch\.pth was written in the middle of an epoch"):
        checks.check_goes_on(tmp_path / "latest.pth", within_epochs=False)


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
