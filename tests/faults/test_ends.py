"""Whatever ends a training, it goes on, and ends with the same bits; and whoever waits for it is told why."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import Job, differences
from tiny import ENV, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run.demo_data import make_dataset

EPOCHS = 6
KILLS = int(os.environ.get("TEST_KILLS", "30"))


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A data set of six iterations an epoch, and what all trainings on it have in common."""
    root = tmp_path_factory.mktemp("jobs")
    make_dataset(root / "data", train=24, val=4)
    config = small.write_config(root / "tiny.py", root / "data", epochs=EPOCHS)
    return [f"--data-path={root / 'data'}", f"--config={config}"]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The work directory of a training by one and by two processes that nothing has happened to."""
    found = {}

    def run(devices):
        if devices not in found:
            found[devices] = tmp_path_factory.mktemp("whole") / f"run{devices}"
            job = Job(found[devices], *options, *processes(devices))
            assert job.end(300) == 0, job.text[-4000:]
        return found[devices]

    return run


@pytest.fixture
def job(tmp_path, options):
    """Starts jobs, of which nothing is left in the end."""
    started = []

    def start(*more, work_dir=tmp_path / "run", **where):
        started.append(Job(work_dir, *options, *more, **where))
        return started[-1]

    yield start
    for each in started:
        each.kill_all()


def processes(devices):
    return [f"--devices={devices}", f"--batch-size={4 // devices}"]


def has(path):
    return lambda: path.exists()


@pytest.mark.parametrize(
    ("devices", "number", "whom"),
    [(1, "SIGTERM", "command"), (1, "SIGUSR1", "all"), (2, "SIGTERM", "command"), (2, "SIGTERM", "all"),
     (2, "SIGUSR1", "rank")],
)  # fmt: skip
def test_a_signal_to_end(job, whole, tmp_path, devices, number, whom):
    """Schedulers send it to the command, or to every process; all ranks write one checkpoint together, at the end of an
    iteration, and the command says so."""
    first = job(*processes(devices))
    first.wait_for(has(tmp_path / "run/epoch_1.pth"))
    time.sleep(random.random())
    running = first.processes()
    assert len(running["rank"]) == (devices if devices > 1 else 0)
    told = [number for kind in running.values() for number in kind] if whom == "all" else running[whom][-1:]
    for process in told:
        os.kill(process, getattr(signal, number))
    assert first.end() == 128 + getattr(signal, number), first.text[-4000:]
    assert f"error: stopped by {number}, with a checkpoint in {tmp_path / 'run/mid_epoch.pth'}\n" in first.text
    assert f"--resume goes on from the newest checkpoint in {tmp_path / 'run'}" in first.text
    assert "Traceback" not in first.text
    assert not list((tmp_path / "run").glob("*.part"))
    again = job(*processes(devices), "--resume")
    assert again.end(300) == 0, again.text[-4000:]
    assert re.search(r"resumed epoch:? \d, iter:? \d+", again.text)
    assert differences(tmp_path / "run", whole(devices)) == []
    assert not (tmp_path / "run/mid_epoch.pth").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_outlives_a_killed_command(job, tmp_path, devices):
    first = job(*processes(devices))
    first.wait_for(has(tmp_path / "run/epoch_1.pth"))
    running = first.processes()
    assert len(running["rank"]) == (devices if devices > 1 else 0)
    assert len(running["worker"]) >= devices
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.end() == -signal.SIGKILL  # when everything is gone
    assert not list((tmp_path / "run").glob("*.part"))


def clear(folder):
    """Empties a folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()


def is_complete(work_dir):
    """Whether nothing is left to train."""
    newest = newest_checkpoint(work_dir)
    return newest is not None and newest.resolve().name == f"epoch_{EPOCHS}.pth"


def test_kills_at_random(job, whole, tmp_path):
    """Of ranks, loader workers and commands, at any moment: nothing is left behind, and the bits are the same."""
    seed, work_dir = os.environ.get("TEST_SEED", "20"), tmp_path / "run"
    chance, kills, deadly, complete = random.Random(seed), [], 0, 0
    while True:
        if is_complete(work_dir):
            complete += 1
            assert differences(work_dir, whole(2)) == []
            if len(kills) >= KILLS:
                break
            clear(work_dir)
        running = job(*processes(2), "--resume", "--checkpoint-iterations=2")
        if len(kills) < KILLS:
            # One in four while it starts, the others while it trains.
            kind = "rank" if chance.random() < 0.25 else "worker"
            running.wait_for(lambda running=running, kind=kind: len(running.processes()[kind]) >= 2)
            limit, wanted = time.monotonic() + chance.uniform(0, 6), chance.choice(["command", "rank", "worker"])
            while time.monotonic() < limit and running.process.poll() is None:
                time.sleep(0.02)
            if there := running.processes()[wanted]:
                os.kill(chance.choice(there), signal.SIGKILL)
                kills.append(wanted)
                deadly += running.end() != 0  # a worker that is done with its work is nobody's loss
                continue
        assert running.end(300) == 0, running.text[-4000:]
        assert not list(work_dir.rglob("*.part"))
    counts = {kind: kills.count(kind) for kind in ("command", "rank", "worker")}
    print(f"{len(kills)} kills, {counts}: {deadly} ended the job; {complete} trainings to their ends, with equal bits")


@pytest.mark.parametrize("devices", [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(job, tmp_path, devices):
    before, after = devices
    first = job(*processes(before), "--checkpoint-iterations=4")
    first.wait_for(has(tmp_path / "run/mid_epoch.pth"))
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.end() == 143
    again = job(f"--devices={after}", "--batch-size=2", "--resume")
    assert again.end(300) == 0, again.text[-4000:]
    logs = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.log"))
    assert "was begun by another number of processes, or in other batches: what is left of it is" in logs


def fill(disk, left=0):
    """Leaves so many bytes of it."""
    room = os.statvfs(disk)
    with contextlib.suppress(OSError):  # if it has become full meanwhile
        (disk / "filler").write_bytes(bytes(max(room.f_bavail * room.f_frsize - left, 0)))


@pytest.mark.parametrize("left", [0, 200_000], ids=["for nothing", "for logs alone"])
def test_a_disk_that_becomes_full(job, whole, disk, tmp_path, left):
    small_disk = disk(tmp_path / "disk", "200m")
    first = job(*processes(1), "--checkpoint-iterations=1", work_dir=small_disk / "run")
    first.wait_for(has(small_disk / "run/epoch_1.pth"))
    fill(small_disk, left)
    assert first.end() == 1
    errors = [line for line in first.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0], first.text[-4000:]
    assert f"{small_disk / 'run'}" in errors[0]
    assert not list((small_disk / "run").glob("*.part"))
    (small_disk / "filler").unlink()
    again = job(*processes(1), "--resume", work_dir=small_disk / "run")
    assert again.end(300) == 0, again.text[-4000:]
    assert differences(small_disk / "run", whole(1)) == []


def test_an_evaluation_on_a_full_disk(whole, options, disk, tmp_path):
    full = disk(tmp_path / "disk", "1m")
    (full / "test").mkdir()
    fill(full)
    checkpoint = whole(1) / f"epoch_{EPOCHS}.pth"
    process = subprocess.run(
        [sys.executable, "-m", "yolox_plugin.test", *options, f"--pth-path={checkpoint}", "--device=cpu",
         f"--work-dir={full / 'test'}"], env=ENV, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "error: No space left on device" in process.stderr, process.stderr[-3000:]
    assert not list((full / "test").glob("*.json"))


def test_a_disk_that_becomes_read_only(job, whole, disk, tmp_path):
    there = disk(tmp_path / "disk", "200m")
    first = job(*processes(1), work_dir=there / "run")
    first.wait_for(has(there / "run/epoch_1.pth"))
    # Open logs keep a mounted file system from it; what is mounted over its folder does not.
    subprocess.run(["mount", "--bind", there / "run", there / "run"], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", there / "run"], check=True)
        assert first.end() == 1
        assert "error: " in first.text and "Read-only file system" in first.text
        refused = job(*processes(1), "--resume", work_dir=there / "run")
        assert refused.end() == 2
        assert f"error: --work-dir {there / 'run'}: {there / 'run'} cannot be written to" in refused.text
    finally:
        subprocess.run(["umount", there / "run"], check=True)
    again = job(*processes(1), "--resume", work_dir=there / "run")
    assert again.end(300) == 0, again.text[-4000:]
    assert differences(there / "run", whole(1)) == []


def test_a_damaged_checkpoint_in_the_middle(job, whole, tmp_path):
    """It is told, and the training goes on from the one before it."""
    first = job(*processes(1), "--checkpoint-iterations=1")
    first.wait_for(has(tmp_path / "run/epoch_2.pth"))
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.end() == 143
    middle = tmp_path / "run/mid_epoch.pth"
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 4
    middle.write_bytes(content)
    again = job(*processes(1), "--resume")
    assert again.end(300) == 0, again.text[-4000:]
    assert "mid_epoch.pth is no readable checkpoint" in again.text or "latest.pth is no readable" in again.text
    assert differences(tmp_path / "run", whole(1)) == []


@pytest.fixture
def own_data(options, tmp_path):
    """A copy of the data set, which may be changed; and a config for it."""
    root = tmp_path / "data"
    subprocess.run(["cp", "-r", options[0].partition("=")[2], root], check=True)
    return root, [f"--data-path={root}", f"--config={small.write_config(tmp_path / 'own.py', root, epochs=EPOCHS)}"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no image")], ids=["gone", "broken"])
@pytest.mark.parametrize("skip", [False, True])
def test_an_image_that_cannot_be_read_any_more(job, own_data, tmp_path, damage, skip):
    root, own = own_data
    images = sorted((root / "train2017").iterdir())
    first = job(*own, *processes(1), *(["--skip-unreadable"] if skip else []))
    first.wait_for(has(tmp_path / "run/epoch_1.pth"))
    for path in images[:5]:
        damage(path)
    status = first.end(300)
    if skip:
        assert status == 0, first.text[-4000:]
        [line] = [line for line in first.text.splitlines() if line.startswith("warning: ") and "samples had" in line]
        assert int(line.split()[1]) > 0
    else:
        assert status == 1
        errors = [line for line in first.text.splitlines() if line.startswith("error: ")]
        assert any(str(path) in errors[0] for path in images[:5]), first.text[-4000:]
        assert "Traceback" not in first.text
        assert "--resume goes on" in first.text


def test_a_loader_worker_that_is_killed(job, tmp_path):
    """As the kernel does when memory runs out."""
    first = job(*processes(1))
    first.wait_for(has(tmp_path / "run/epoch_1.pth"))
    os.kill(first.wait_for(lambda: first.processes()["worker"])[0], signal.SIGKILL)
    assert first.end() == 1
    assert "error: a data-loading worker was killed (Killed)" in first.text, first.text[-4000:]
    assert "Traceback" not in first.text


def test_shared_memory_that_is_too_small(job):
    inside = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=100k tmpfs /dev/shm && exec "$@"', "sh"]
    first = job(*processes(1), inside=inside)
    assert first.end() == 1
    assert "error: /dev/shm, with 0 MB, is too small" in first.text, first.text[-4000:]


def test_a_rank_that_hangs(job, tmp_path):
    """It is named when the others have waited long enough."""
    first = job(*processes(2), "--timeout-minutes=0.1")
    first.wait_for(has(tmp_path / "run/epoch_1.pth"))
    ranks = {int(variable_of(number, "RANK")): number for number in first.processes()["rank"]}
    os.kill(ranks[1], signal.SIGSTOP)
    assert first.end(120) == 1
    assert "error: process 1 of 2 did not answer" in first.text, first.text[-4000:]


def variable_of(number, name):
    """What a process has for a variable in its environment."""
    variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    return next(v.partition(b"=")[2] for v in variables if v.partition(b"=")[0] == name.encode())
