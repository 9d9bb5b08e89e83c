"""Trainings as jobs of a cluster: commands with all their processes, which tests signal, kill, stop and starve."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tiny import ENV, HOST

from yolox_plugin.core.checkpoint import newest_checkpoint

PARTS = ("state_dict", "ema_state_dict")
LOGS = "*.log.json" if HOST == "mmdet2" else "*/*.log"


class Job:
    """A training in the background, in a session of its own."""

    def __init__(self, work_dir, *options, inside=()):
        """`inside`: words before the command, for instance to run it elsewhere."""
        self.work_dir, self.log = Path(work_dir), Path(f"{work_dir}.log")
        self.mark = f"TEST_JOB={work_dir}"
        command = [sys.executable, "-m", "yolox_plugin.train", "--device=cpu", f"--work-dir={work_dir}", *options]
        with self.log.open("a") as output:
            self.begin = output.tell()
            self.process = subprocess.Popen(
                [*inside, *command], env=ENV | {"TEST_JOB": str(work_dir), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self):
        """What it has printed."""
        return self.log.read_bytes()[self.begin :].decode(errors="replace")

    def processes(self):
        """All of it that run, by kind: the command, ranks, and their loader workers."""
        found = {"command": [], "rank": [], "worker": []}
        for number, variables in all_with(self.mark):
            parent = parent_of(number)
            if number == self.process.pid:
                found["command"].append(number)
            elif parent == self.process.pid and b"RANK" in variables:
                found["rank"].append(number)
            elif parent is not None:
                found["worker"].append(number)
        return found

    def wait_for(self, condition, seconds=120):
        """Until `condition()`; an error if the job ends before, or it takes longer."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, self.text[-4000:]
            assert time.monotonic() < end, self.text[-4000:]
            time.sleep(0.02)
        return value

    def end(self, seconds=120):
        """Its status, when all its processes are gone, which has to be within these seconds, or some after its end."""
        status = self.process.wait(timeout=seconds)
        limit = time.monotonic() + 20
        while left := list(all_with(self.mark)):
            assert time.monotonic() < limit, (left, self.text[-4000:])
            time.sleep(0.05)
        return status

    def kill_all(self):
        """Whatever is left of it."""
        for number, _ in all_with(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


def all_with(mark):
    """Processes with this in their environment, and all variables in it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if mark.encode() in variables and state != "Z":
                    yield int(folder.name), {variable.partition(b"=")[0] for variable in variables}


def parent_of(number):
    """The process that started another; None if that is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return None


def differences(one, other):
    """The tensors in which the newest checkpoints of two runs differ, optimizers included."""
    contents = [torch.load(newest_checkpoint(Path(path)), weights_only=False) for path in (one, other)]
    assert contents[0]["meta"]["epoch"] == contents[1]["meta"]["epoch"]
    assert contents[0]["meta"]["iter"] == contents[1]["meta"]["iter"]
    found = []
    for part in PARTS:
        if part in contents[0]:
            first, second = (content[part] for content in contents)
            assert first.keys() == second.keys()
            found += [name for name, value in first.items() if not torch.equal(value, second[name])]
    first, second = (content["optimizer"]["state"] for content in contents)
    assert first and first.keys() == second.keys()
    found += [n for n, s in first.items() if not torch.equal(s["momentum_buffer"], second[n]["momentum_buffer"])]
    return found
