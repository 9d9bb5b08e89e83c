"""Checkpoints run no code, whichever torch reads them."""

import builtins
import contextlib
import os
import pickle
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch

from yolox_plugin.core.checkpoint import (
    DamagedCheckpoint,
    UnsafeCheckpoint,
    is_numbered,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
)


@pytest.fixture(params=["this torch", "before 2.5"])
def torchs(request, monkeypatch):
    if request.param == "before 2.5":
        monkeypatch.delattr(torch.serialization, "safe_globals")
        load = torch.load

        def as_before(*args, **kwargs):  # in which False was the default
            return load(*args, **{"weights_only": False, **kwargs})

        monkeypatch.setattr(torch, "load", as_before)


WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(3),
    "d": torch.zeros(0, 4, dtype=torch.bool), "e": torch.nn.Parameter(torch.ones(2)),
}  # fmt: skip
META = {
    "epoch": 3, "best": np.float64(0.25), "count": np.int64(4), "array": np.arange(3, dtype=np.float32), "text": "ä",
    "bytes": b"\xff\0", "set": {1, 2}, "nothing": None, "nested": [(1, {"x": 2.5})], "complex": 1j,
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_what_checkpoints_hold_is_read(torchs, tmp_path, legacy):
    path = tmp_path / "x.pth"
    content = {"state_dict": OrderedDict(WEIGHTS), "meta": META, "optimizer": {"state": {0: {"step": 1}}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    assert type(found["state_dict"]) is OrderedDict and list(found["state_dict"]) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert torch.equal(found["state_dict"][name], value) and found["state_dict"][name].dtype == value.dtype
    np.testing.assert_equal(found["meta"], META)
    assert type(found["meta"]["best"]) is np.float64 and found["optimizer"] == content["optimizer"]


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evils(path):
    """Each would leave a file there."""
    write = f"open({str(path)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {path}"),
        "exec": Calls(builtins.exec, write),
        "eval": Calls(builtins.eval, write),
        "open": Calls(builtins.open, str(path), "w"),
        "getattr": Calls(builtins.getattr, np.ndarray, "dump"),
        "import": Calls(builtins.__import__, "os"),
        "mkdir": Calls(os.mkdir, str(path)),
        "load": Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(path)))),
        "a class": Calls(type, "X", (), {}),
        "numpy": Calls(np.save, str(path), 1),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["meta", "state_dict", "optimizer"])
@pytest.mark.parametrize("kind", evils("x"))
def test_nothing_in_a_checkpoint_is_run(torchs, tmp_path, kind, place, legacy):
    evil = evils(tmp_path / "written")[kind]
    content = {"state_dict": {"a": torch.ones(2)}, "meta": {}, "optimizer": {}}
    content[place] = {**content[place], "evil": evil}
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpoint, match="does not load it without your word"):
        read_checkpoint(path)
    assert not (tmp_path / "written").exists() and not (tmp_path / "written.npy").exists()


def test_the_users_word_counts(torchs, tmp_path, monkeypatch):
    torch.save({"state_dict": {}, "meta": {"evil": Calls(os.mkdir, str(tmp_path / "made"))}}, tmp_path / "x.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    read_checkpoint(tmp_path / "x.pth")
    assert (tmp_path / "made").is_dir()


CONTENT = {"state_dict": WEIGHTS, "meta": META}


@pytest.mark.parametrize("part", range(8))
def test_a_flipped_bit_is_found(tmp_path, part):
    """Wherever it is: what is read is what was written, or the file is damaged."""
    path = tmp_path / "x.pth"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    found = 0
    for bit in range(part, 8 * len(whole), 8 * 23 + 1):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except DamagedCheckpoint:
            found += 1
        else:
            assert all(torch.equal(content["state_dict"][name], value) for name, value in WEIGHTS.items()), bit
            np.testing.assert_equal(content["meta"], META)
    assert found > 20


def test_every_bit_of_the_list_of_records_counts(tmp_path):
    """To torch, a record that is marked as a folder is empty."""
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.arange(9.0), "b": torch.ones(3)}}, path)
    whole = path.read_bytes()
    for bit in range(8 * whole.index(b"PK\1\2"), 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(DamagedCheckpoint):
            found = read_checkpoint(path)["state_dict"]
            assert torch.equal(found["a"], torch.arange(9.0)) and torch.equal(found["b"], torch.ones(3)), bit


def test_an_older_file_with_a_false_byte_is_damaged_or_read(tmp_path):
    """It has no checksums."""
    path = tmp_path / "x.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for byte in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[byte] ^= 0x15
        path.write_bytes(damaged)
        with contextlib.suppress(DamagedCheckpoint, UnsafeCheckpoint):
            read_checkpoint(path)


def test_a_file_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    np.testing.assert_equal(read_checkpoint(tmp_path / "x.pth")["meta"], META)


@pytest.mark.parametrize("template", ["epoch_{}.pth", "iter_{}.pth", "yolox_epoch_{:04d}.pth", "of_best_iter_{0}.pth"])
def test_names_by_which_checkpoints_are_found(template):
    assert is_numbered(template.format(12), 12)


@pytest.mark.parametrize(
    "template", ["yolox_{}.pth", "epoch_1{}.pth", "best_epoch_{}.pth", "epoch_{:x}.pth", "a/b_epoch_{}.pth", "epoch_{}"]
)
def test_names_by_which_they_are_not(template):
    assert not is_numbered(template.format(12), 12)


def write(path, epoch, iteration):
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": {"epoch": epoch, "iter": iteration}}, path)
    return path


def test_epochs_and_iterations_beside_each_other(tmp_path):
    """As of two hooks, one of which counts iterations; 5000 are an epoch."""
    for epoch in (9, 11, 12):
        write(tmp_path / f"epoch_{epoch}.pth", epoch, 5000 * epoch)
    write(tmp_path / "iter_59000.pth", 11, 59000)
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch_12.pth"
    later = write(tmp_path / "iter_61000.pth", 12, 61000)
    assert newest_checkpoint(tmp_path) == later
    write(tmp_path / "iter_60000.pth", 11, 60000)  # which has not ended the epoch
    later.unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch_12.pth"


@pytest.mark.parametrize("content", [b"", b"cut short", "half", "weights"])
def test_a_damaged_one_beside_another_unit(torchs, tmp_path, content):
    """Those that can be read are chosen from; where there is none, one is there to be reported."""
    first, second = write(tmp_path / "epoch_12.pth", 12, 60000), write(tmp_path / "iter_61000.pth", 12, 61000)
    for path, other in ((second, first), (first, second)):
        if content == "weights":
            torch.save({"a": torch.ones(2)}, path)
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
        assert newest_checkpoint(tmp_path) == (other if path == second else second)


def test_one_that_must_not_be_read_beside_another_unit(tmp_path):
    write(tmp_path / "epoch_12.pth", 12, 60000)
    (tmp_path / "iter_61000.pth").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch_12.pth"


@pytest.fixture
def copied(tmp_path):
    """A folder that was copied without links: its latest.pth is a file, as epoch_3.pth."""
    for epoch in (1, 2, 3):
        write(tmp_path / f"epoch_{epoch}.pth", epoch, 5 * epoch)
    shutil.copy(tmp_path / "epoch_3.pth", tmp_path / "latest.pth")
    return tmp_path


def test_one_in_the_middle_is_newer_than_a_copied_latest(copied):
    middle = write(copied / "mid_epoch.pth", 3, 17)
    assert newest_checkpoint(copied) == middle
    write(middle, 2, 14)
    assert newest_checkpoint(copied) == copied / "latest.pth"
    write(middle, 3, 17)
    shutil.copy(middle, copied / "latest.pth")  # which was a link to it
    assert newest_checkpoint(copied) == middle


def damage(path, whole_meta):
    """In one of its tensors alone, or in all of it."""
    content = bytearray(path.read_bytes())
    if whole_meta:
        content[content.index(torch.ones(2).numpy().tobytes())] ^= 1
    path.write_bytes(content if whole_meta else content[:100])


@pytest.mark.parametrize("whole_meta", [False, True])
def test_before_a_copied_latest_that_is_damaged(copied, whole_meta):
    """All the others in its folder are, and the one that it was copied from is tried first."""
    write(copied / "iter_14.pth", 2, 14)
    write(copied / "mid_epoch.pth", 2, 13)
    damage(copied / "latest.pth", whole_meta)
    assert newest_checkpoint(copied) == copied / "latest.pth"
    for name in ("epoch_3.pth", "iter_14.pth", "mid_epoch.pth", "epoch_2.pth", "epoch_1.pth"):
        told = []
        assert read_newest(copied / "latest.pth", told.append)[0] == copied / name
        assert told and "latest.pth is no readable checkpoint" in told[0]
        damage(copied / name, whole_meta)
    with pytest.raises(ValueError, match=r"epoch_1\.pth is no readable.*There is none before it in that folder"):
        read_newest(copied / "latest.pth", told.append)
