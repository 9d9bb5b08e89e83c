"""Commands tried on odd input: each either works or ends with status 2 and one sentence, and changes nothing else."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SECONDS = 120.0  # after which a command hangs; an image of a gigapixel takes one of them on a busy machine
CASES = 200  # of a process: what one leaves in it does not stay for all
# Where a command may write beside what is new and named by its arguments: what most cases name, the current folder, and
# that beside a checkpoint for an evaluation.
PLACES = ("out", "here", "test")


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Special(NamedTuple):
    """A "folder", a "pipe" that nobody writes to, or a file that nobody may read."""

    kind: str


class Case(NamedTuple):
    """A command, and what is to be in its folder beside, or in the place of, what `Trial` puts there.

    In arguments, @ is that folder.
    """

    command: str
    arguments: Sequence[str]
    files: Mapping[str, bytes | Link | Special | None] = {}  # None for one that is not there
    checks_alone: bool = False
    named: str = ""  # an exception that names this file is right: it shows only when it is read
    hosts: bool = False  # as is one of the host's own code, once the training or evaluation has begun


class Outcome(NamedTuple):
    """What became of it."""

    status: int | None  # None for a crash or a hang
    raised: str | None  # the traceback
    out: str
    error: str
    wrong: list[str]  # what should not have happened

    @property
    def sentence(self) -> str:
        """The one of an error."""
        return next((line for line in self.error.splitlines() if "error: " in line), "")


class Child:
    """A process of `child.py`, and another one after a crash, a hang, or `CASES`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._process, self._replies, self._left = folder, None, None, 0
        (folder / "tmp").mkdir()

    def start(self) -> None:
        self.stop()
        read, write = os.pipe()
        kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}  # torch sets it
        there = {name: str(self.folder / "tmp") for name in ("TMPDIR", "HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
        env = {**kept, **there, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "-1",
               "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF", "PYTHONWARNINGS": "ignore"}  # fmt: skip
        files = [self.folder / "stdout", self.folder / "stderr"]
        self._process = subprocess.Popen(
            [sys.executable, HERE / "child.py", str(write), *files], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True, env=env, cwd=self.folder, pass_fds=[write], start_new_session=True,
        )  # fmt: skip
        os.close(write)
        self._replies, self._left = os.fdopen(read), CASES

    def stop(self) -> None:
        """Ends it, and whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()
            self._replies.close()
            self._process = None

    def ask(self, case: Mapping[str, object]) -> tuple[dict[str, object] | None, str]:
        """The reply, or why there is none."""
        if self._process is None or not self._left:
            self.start()
        self._left -= 1
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        limit = SECONDS * (1 if self._left < CASES - 1 else 2)  # the first one imports everything
        if not select.select([self._replies], [], [], limit)[0]:
            self.stop()
            return None, f"hangs: no end after {limit:g} s"
        line = self._replies.readline()
        if not line:
            status = self._process.wait()
            self.stop()
            return None, f"crashes: the process ended with {status}"
        return json.loads(line), ""

    def printed(self) -> tuple[str, str]:
        return tuple((self.folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """What is there; a file that has been written to is another one. Folders by their names alone."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            about = os.lstat(path)
            is_folder = stat.S_ISDIR(about.st_mode)
            found[os.path.relpath(path, folder)] = (
                (about.st_mode,) if is_folder else (about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns)
            )
    return found


class Trial:
    """Tries cases, each in a folder of its own with a data set `data`, a config `config.py`, a checkpoint `some.pth`
    and an image `one.jpg`. A command may write to `out` or another new place that it is told of there, and where it has
    not been told, to `here`, the current folder."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base, self.count = folder, base, 0
        self.child = Child(folder)

    @contextlib.contextmanager
    def made(self, case: Case) -> Iterator[Path]:
        """The folder of a case."""
        self.count += 1
        folder = self.folder / f"case{self.count}"
        shutil.copytree(self.base, folder, copy_function=os.link)
        (folder / "here").mkdir()
        for name, content in case.files.items():
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, Link):
                path.symlink_to(content.target)
            elif content == Special("folder"):
                path.mkdir()
            elif content == Special("pipe"):
                os.mkfifo(path)
            elif content is not None:  # also for root, who may read all
                path.symlink_to("/proc/self/mem")
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def __call__(self, case: Case) -> Outcome:
        """What becomes of a case, and what of that is wrong."""
        with self.made(case) as folder:
            arguments = [argument.replace("@", str(folder)) for argument in case.arguments]
            before = state(folder)
            asked = {"command": case.command, "arguments": arguments, "folder": str(folder / "here")}
            reply, lost = self.child.ask({**asked, "checks_alone": case.checks_alone})
            out, error = self.child.printed()
            after = state(folder)
        if reply is None:
            return Outcome(None, None, out, error, [lost])
        status, raised = reply["status"], reply["raised"]
        wrong = []
        begun = "out/config.py" in after.keys() - before.keys() or "in _samples" in (raised or "")  # or an evaluation
        if raised and not self.is_right(case, raised, begun):
            wrong.append("lets an exception through: " + raised.strip().splitlines()[-1])
        elif status == 2:
            lines = error.splitlines()
            sentences = [line for line in lines if line.startswith("error: ") or ": error: " in line]
            is_last = (
                error.startswith("usage: ") or lines[-1:] == sentences
            )  # argparse tells what it was given as it is
            if len(sentences) != 1 or not is_last or "Traceback" in error:
                wrong.append(f"does not end with one sentence, but {lines[-3:]}")
        elif not raised and status != 0:
            told = case.command == "predict" or (case.named and case.named in error)
            if status != 1 or not told:
                wrong.append(f"ends with status {status}")
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        named = {argument.partition("@/")[2].split("/")[0] for argument in case.arguments}
        places = (*PLACES, *(name for name in named if name and name not in before))
        mine = {name for name in changed if name.split(os.sep)[0] in places}
        others = {name for name in changed - mine if not name.endswith(".yolox_index")}
        if others:
            wrong.append(f"changes {sorted(others)}")
        if status == 2 and mine:
            wrong.append(f"ends with status 2, but changes {sorted(mine)}")
        allowed = (*(f"{folder}/{place}/" for place in places), f"{folder}/.export-", f"{self.folder}/tmp/", "/dev/",
                   "/proc/self/")  # fmt: skip
        # An attempt to make the folder, which is there, is none.
        outside = {path for path in reply["touched"] if not f"{path}/".startswith(allowed) and path != str(folder)}
        outside = {path for path in outside if not path.endswith((".yolox_index", ".yolox_index.part"))}
        if outside:
            wrong.append(f"writes to {sorted(outside)}")
        return Outcome(status, raised, out, error, wrong)

    @staticmethod
    def is_right(case: Case, raised: str, begun: bool) -> bool:
        """Whether a command may end with this exception."""
        *_, place = re.findall(r'^  File "(.+?)", line', raised, re.MULTILINE)
        message = raised[raised.rindex("    ") :]
        return (case.named and case.named in message) or (case.hosts and begun and "yolox_plugin" not in place)

    def close(self) -> None:
        self.child.stop()
