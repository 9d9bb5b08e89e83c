"""How many examples a fuzz takes: few by default, many with `--hypothesis-profile=faults`, always the same; and two
machines that share no folder: network namespaces of this one, which root may make."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny import ENV, small

from yolox_plugin.run.demo_data import make_dataset

FUZZ = {"database": None, "deadline": None, "derandomize": True, "print_blob": True,
        "suppress_health_check": list(HealthCheck)}  # fmt: skip
settings.register_profile("few", max_examples=8, **FUZZ)
settings.register_profile("faults", max_examples=480, **FUZZ)
# Random examples, other ones each time: a failure is printed with what repeats it.
settings.register_profile("search", max_examples=480, **FUZZ | {"derandomize": False})
settings.load_profile("few")

PORT = 29512
EPOCHS = 6
# Gives a command the name of its machine, and the names of both.
AS_ON = 'mount --bind "$HOSTS" /etc/hosts && hostname "$NAME" && exec "$@"'
SECONDS = 300  # after which a command hangs


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Command(subprocess.Popen):
    """One that runs on a machine, whose words go to a file."""

    def __init__(self, command, log, **options):
        self.log = log
        with log.open("w") as file:
            super().__init__(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options)

    def told(self):
        return self.log.read_text()

    def ended(self):
        """Its status."""
        return self.wait(timeout=SECONDS)


class Machine:
    """Has a network, a name and folders of its own."""

    def __init__(self, name, address, folder):
        self.name, self.address, self.folder = name, address, folder
        self.namespace = f"yolox{os.getpid()}{name[-1]}"
        self.work_dir = folder / "work"
        self.data = folder / f"data-of-{name}"
        self.home, self.temporary = folder / "home", Path(tempfile.mkdtemp(prefix="yolox"))  # sockets' names are short
        self.home.mkdir(parents=True)
        self.commands = []
        self.environment = {}

    def add_to_path(self, folder):
        """Python looks there first."""
        self.environment["PYTHONPATH"] = os.pathsep.join([str(folder), ENV.get("PYTHONPATH", "")])

    def run(self, module, *options):
        """Starts a command of the plugin's, as it would be on this machine."""
        environment = {
            **ENV, "HOME": str(self.home), "TMPDIR": str(self.temporary), "NAME": self.name,
            "HOSTS": str(self.folder.parent / "hosts"), **self.environment,
        }  # fmt: skip
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", AS_ON, "sh",
                   sys.executable, "-m", f"yolox_plugin.{module}", *map(str, options)]  # fmt: skip
        process = Command(command, self.folder / f"log{len(self.commands)}", env=environment, cwd=self.home)
        self.commands.append(process)
        return process

    def remove(self):
        for process in self.commands:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for process in self._processes():
            os.kill(process, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False)
        shutil.rmtree(self.temporary)

    def _processes(self):
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return map(int, found.stdout.split())


class Pair:
    """Two machines with a cable between them, and the same data on both."""

    def __init__(self, folder):
        self.machines = [Machine(f"machine-{letter}", f"10.77.0.{number}", folder / letter)
                         for number, letter in ((1, "a"), (2, "b"))]  # fmt: skip
        names = [f"{machine.address} {machine.name}\n" for machine in self.machines]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        a, b = self.machines
        make_dataset(a.data, train=16, val=5)
        shutil.copytree(a.data, b.data)
        for machine in self.machines:
            small.write_config(machine.folder / "tiny.py", machine.data, epochs=EPOCHS)

    def connect(self):
        a, b = (machine.namespace for machine in self.machines)
        ip("netns", "add", a)
        ip("netns", "add", b)
        ip("-n", a, "link", "add", "net0", "type", "veth", "peer", "name", "net0", "netns", b)
        for machine in self.machines:
            ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "net0")
            for device in ("lo", "net0"):
                ip("-n", machine.namespace, "link", "set", device, "up")

    def start(self, module, *options, **own):
        """The same command on both.

        Args:
            own: further options of one of them, by its letter.
        """
        return [self.start_on(machine, module, *own.get(machine.name[-1], []), *options) for machine in self.machines]

    def start_on(self, machine, module, *options):
        """It on one of them."""
        return machine.run(
            module, f"--data-path={machine.data}", f"--config={machine.folder / 'tiny.py'}", "--device=cpu",
            "--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=machine-a:{PORT}",
            f"--work-dir={machine.work_dir}", *options,
        )  # fmt: skip

    def wait_for(self, path, commands):
        """Until this file is there, while all of these run."""
        end = time.monotonic() + SECONDS
        while not path.exists():
            for command in commands:
                assert command.poll() is None, command.told()
            assert time.monotonic() < end, [command.told() for command in commands]
            time.sleep(0.02)

    def remove(self):
        for machine in self.machines:
            machine.remove()


@pytest.fixture(scope="session")
def two_machines():
    """Makes machines a and b with their files in a folder; within it they run."""

    @contextlib.contextmanager
    def made_in(folder):
        made = Pair(folder)
        try:
            made.connect()
            yield made
        finally:
            made.remove()

    return made_in


@pytest.fixture
def pair(tmp_path, two_machines):
    """Machines a and b; nothing of them is left afterwards."""
    with two_machines(tmp_path) as made:
        yield made
