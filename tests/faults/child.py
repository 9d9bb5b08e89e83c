"""A process in which commands are tried, one after another: a crash or a hang of one is that process's alone.

A case comes as a line of JSON on stdin, and what became of it goes as one to the file descriptor that is named: the
status, the traceback of what the command let through, and paths that Python has opened for writing, or made, moved or
removed. What the command prints goes to the files that are named.
"""

import contextlib
import faulthandler
import importlib
import io
import json
import os
import sys
import traceback

COMMANDS = {"train": "train", "test": "evaluate", "look": "look", "predict": "predict", "export": "export"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

touched: list[str] = []


def audit(event: str, arguments: tuple[object, ...]) -> None:
    """Notes what changes files."""
    if event == "open":
        path, _, flags = arguments
        found = [path] if isinstance(flags, int) and flags & WRITES else []
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"):
        found = [arguments[0]]
    elif event in ("os.rename", "os.link", "os.symlink"):
        found = list(arguments[:2]) if event == "os.rename" else [arguments[1]]
    else:
        return
    for path in found:
        if isinstance(path, (str, bytes, os.PathLike)):
            touched.append(os.path.abspath(os.fsdecode(path)))


def run(case: dict[str, object], mains: dict[str, object]) -> dict[str, object]:
    """What became of a case."""
    module = mains[case["command"]]
    training = mains["train"]
    os.chdir(case["folder"])
    stops = contextlib.ExitStack()
    if case["checks_alone"]:
        # A training ends where its checks have passed.
        for owner, name, value in ((training, "train", lambda *_, **__: 0),
                                   (training.launch, "run_processes", lambda *_, **__: 0)):  # fmt: skip
            stops.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
    raised = None
    del touched[:]
    with stops:
        try:
            status = module.main(case["arguments"])
        except SystemExit as error:  # argparse's
            status = error.code
        except BaseException:
            status, raised = 1, traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return {"status": status, "raised": raised, "touched": [*touched]}


def main() -> None:
    replies = os.fdopen(int(sys.argv[1]), "w")
    out, error = (os.open(path, os.O_WRONLY | os.O_CREAT) for path in sys.argv[2:4])
    os.dup2(out, 1)
    os.dup2(error, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), "utf-8")
    sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"), "utf-8", "backslashreplace", line_buffering=True)
    faulthandler.enable(sys.stderr)
    mains = {name: importlib.import_module(f"yolox_plugin.run.{module}") for name, module in COMMANDS.items()}
    sys.addaudithook(audit)
    for line in sys.stdin:
        for file in (out, error):
            os.truncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
        replies.write(json.dumps(run(json.loads(line), mains)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
