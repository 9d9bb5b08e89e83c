"""The checkpoint that two machines go on from."""

import re

import pytest
import torch
import torch.multiprocessing as mp
from two_machines import as_machine


def write(path, epoch, iteration=0, value=0.0):
    path.parent.mkdir(exist_ok=True)
    meta = {"epoch": epoch, "iter": iteration}
    torch.save({"state_dict": {"weight": torch.full((1000,), value)}, "meta": meta}, path)


def epoch_in(path):
    return torch.load(path)["meta"]["epoch"]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """For each of two machines, what it is asked and what it answers."""
    spawn = mp.get_context("spawn")
    store = tmp_path_factory.mktemp("two") / "store"
    queues = [(spawn.Queue(), spawn.Queue()) for _ in range(2)]
    running = [spawn.Process(target=as_machine, args=(rank, store, *pair), daemon=True)
               for rank, pair in enumerate(queues)]  # fmt: skip
    for process in running:
        process.start()
    yield queues
    for process, (asked, _) in zip(running, queues, strict=True):
        asked.put(None)
        process.join()
        assert process.exitcode == 0


@pytest.fixture
def shared(processes, tmp_path):
    """What each of two machines, with the folders a and b, has of the newest checkpoint."""

    def share(chunk=1000):
        for (asked, _), name in zip(processes, "ab", strict=True):
            asked.put((tmp_path / name, chunk))
        return tuple(answers.get(timeout=300) for _, answers in processes)

    return share


def test_none_has_one(shared):
    assert shared() == (None, None)


@pytest.mark.parametrize("chunk", [100, 2**24])
@pytest.mark.parametrize("owner", "ab")
def test_one_has_it(shared, tmp_path, owner, chunk):
    write(tmp_path / owner / "epoch_3.pth", 3)
    assert shared(chunk) == (tmp_path / "a/epoch_3.pth", tmp_path / "b/epoch_3.pth")
    assert (tmp_path / "a/epoch_3.pth").read_bytes() == (tmp_path / "b/epoch_3.pth").read_bytes()
    assert not list(tmp_path.glob("*/*.part"))
    assert not (tmp_path / "a/latest.pth").exists()


def test_a_link_comes_along(shared, tmp_path):
    write(tmp_path / "b/epoch_3.pth", 3)
    (tmp_path / "b/latest.pth").symlink_to("epoch_3.pth")
    write(tmp_path / "a/epoch_2.pth", 2)
    (tmp_path / "a/latest.pth").symlink_to("epoch_2.pth")
    assert shared() == (tmp_path / "a/epoch_3.pth", tmp_path / "b/epoch_3.pth")
    assert (tmp_path / "a/latest.pth").resolve() == tmp_path / "a/epoch_3.pth"
    assert epoch_in(tmp_path / "a/epoch_2.pth") == 2


def test_the_newest_is_further_within_its_epoch(shared, tmp_path):
    write(tmp_path / "a/epoch_2.pth", 2, 10)
    write(tmp_path / "b/iter_13.pth", 2, 13)
    assert shared() == (tmp_path / "a/iter_13.pth", tmp_path / "b/iter_13.pth")


def test_another_one_of_its_name_gets_another_name(shared, tmp_path):
    """Of the same size; and of two of the same epoch, rank 0's is taken."""
    write(tmp_path / "a/epoch_3.pth", 3, value=1.0)
    write(tmp_path / "b/epoch_3.pth", 3, value=2.0)
    assert (tmp_path / "a/epoch_3.pth").stat().st_size == (tmp_path / "b/epoch_3.pth").stat().st_size
    shared()
    assert torch.load(tmp_path / "b/epoch_3.pth")["state_dict"]["weight"][0] == 1.0
    [kept] = (tmp_path / "b").glob("epoch_3.pth.*")
    assert torch.load(kept)["state_dict"]["weight"][0] == 2.0


def test_the_same_one_stays(shared, tmp_path):
    for name in "ab":
        write(tmp_path / name / "epoch_3.pth", 3)
    (tmp_path / "b/epoch_3.pth").write_bytes((tmp_path / "a/epoch_3.pth").read_bytes())
    before = (tmp_path / "b/epoch_3.pth").stat()
    assert shared() == (tmp_path / "a/epoch_3.pth", tmp_path / "b/epoch_3.pth")
    after = (tmp_path / "b/epoch_3.pth").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_one_is_not_sent(shared, tmp_path):
    """But the one before it, as one machine alone goes on."""
    write(tmp_path / "a/epoch_2.pth", 2)
    write(tmp_path / "a/epoch_3.pth", 3)
    (tmp_path / "a/epoch_3.pth").write_bytes((tmp_path / "a/epoch_3.pth").read_bytes()[:-100])
    assert shared() == (tmp_path / "a/epoch_2.pth", tmp_path / "b/epoch_2.pth")


def test_all_are_damaged(shared, tmp_path):
    """On one machine: both end, and the sentence names it."""
    write(tmp_path / "a/epoch_2.pth", 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/epoch_3.pth").write_bytes(b"damaged")
    found = shared()
    assert found[0] == found[1]
    assert re.match(r"error: b \(node 1\): .*/b/epoch_3.pth is no readable checkpoint", found[0])


@pytest.mark.parametrize("in_the_way", ["folder", "part"])
def test_it_cannot_be_written(shared, tmp_path, in_the_way):
    """On one machine: both end, and nothing is left unfinished."""
    write(tmp_path / "a/epoch_3.pth", 3)
    if in_the_way == "folder":
        (tmp_path / "b").write_text("is a file")
    else:
        (tmp_path / "b/epoch_3.pth.part").mkdir(parents=True)
    found = shared()
    assert found[0] == found[1]
    assert re.match(rf"error: b \(node 1\): --work-dir {tmp_path}/b: ", found[0])
