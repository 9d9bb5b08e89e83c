"""The index of an annotation file: what is in it, and that processes share it."""

import copy
import json
import multiprocessing
import os
import pickle

import pytest
from pycocotools.coco import COCO

from yolox_plugin.core import annotation_index
from yolox_plugin.core.annotation_index import SUFFIX, build, keep, open_index
from yolox_plugin.core.coco_json import read_coco

BOX = {"bbox": [1, 2.5, 3e1, 4], "area": 120.0, "iscrowd": 0}
CONTENT = {
    "info": {"year": 2026, "nested": [1, {"images": []}]},
    "images": [
        {"id": 7, "file_name": "ä b.jpg", "width": 64, "height": 48.5},
        {"id": 3, "file_name": 'q"\\.jpg', "width": 10, "height": 20, "more": {"a": [None, True, float("nan")]}},
        {"id": "3", "file_name": "empty.jpg", "width": 1, "height": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 2, "segmentation": [[1.25, 2, 3]], **BOX},
        {"id": 2, "image_id": 7, "category_id": 1, **BOX},
        {"id": 0, "image_id": 99, "category_id": 1, **BOX},
        {"id": 4, "image_id": 3, "category_id": 5, "ignore": 1, **BOX},
    ],
    "categories": [{"id": 2, "name": "cat"}, {"id": 1, "name": "dog", "supercategory": "pet"}],
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_index, "LARGE", 0)
    monkeypatch.setattr(annotation_index.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data/train.json", CONTENT)


def write(path, content, **style):
    path.write_text(content if isinstance(content, str) else json.dumps(content, **style), encoding="utf-8")
    return path


def same(one, other):
    one, other = (json.dumps(value, sort_keys=True) for value in (one, other))  # as a NaN differs from itself
    return one == other


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}], ids=str)
def test_a_file_reads_as_json_reads_it(path, style):
    file = read_coco(write(path, CONTENT, **style))
    assert same({name: value for name, value in file.content.items() if name != "annotations"},
                {name: value for name, value in CONTENT.items() if name != "annotations"})  # fmt: skip
    without = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in CONTENT["annotations"]]
    assert file.content["annotations"] == without
    for kind in ("images", "annotations"):
        assert same([json.loads(file.entry(kind, place)) for place in range(len(CONTENT[kind]))], CONTENT[kind])


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "[]", "3", "{", "{}", "{} x", '{"images": [}', '{"images": [1,]}', '{"images": [1 2]}', '{"a" 1}',
        '{"images": []', '{"images": [], }', '{"images": [] "a": 1}', '{"images": [{"id": 1}, ', "{1: 2}", "{'a': 1}",
        '{"images": 5, "images": [4]}', '{"images": [4], "images": 5}', '{"images": [[1], "x", null, 1e400, NaN]}',
        ' {"images" :[ ] ,"annotations":[\t{}\r\n] }\n ', '{"images": [1]]}', '{"a": "\\ud800"}', '{"images": ["\n"]}',
    ],
)  # fmt: skip
def test_whatever_json_says_of_a_text_is_said(path, text):
    write(path, text)
    try:
        expected = json.loads(text)
    except ValueError as error:
        with pytest.raises(ValueError) as found:
            read_coco(path)
        assert str(found.value) == str(error)
    else:
        assert same(read_coco(path).content, expected)


def test_it_has_what_pycocotools_has(path):
    index, coco = open_index(path), COCO(str(path))
    assert len(index) == 3 and index.ids == list(coco.imgs)
    for place, (id_, image) in enumerate(coco.imgs.items()):
        assert same(index.image(place), image) and index.places[id_] == place
        assert index.annotations(place) == coco.loadAnns(coco.getAnnIds(imgIds=[id_]))
        assert index.sizes[place].tolist() == [image["width"], image["height"]]
    assert index.categories == CONTENT["categories"] and same(index.content(), json.loads(path.read_text()))
    for ids in ([], [1], [2], [1, 2], [5]):
        wanted = {id_ for cat in ids if cat in coco.cats for id_ in coco.catToImgs[cat]}
        assert index.has_any(ids).tolist() == [id_ in wanted for id_ in coco.imgs]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["images"].append(dict(content["images"][0])),
        lambda content: content["images"][0].update(id=1.5),
        lambda content: content["images"][0].pop("width"),
        lambda content: content["images"][0].update(height="48"),
        lambda content: content["images"][0].update(height=0),
        lambda content: content["images"][0].pop("file_name"),
        lambda content: content["annotations"][0].pop("bbox"),
        lambda content: content["annotations"][0].update(bbox=[1, 2, None, 4]),
        lambda content: content["annotations"][0].update(bbox=[1, 2, 3]),
        lambda content: content["annotations"][0].pop("area"),
        lambda content: content["annotations"][0].update(id=2),
        lambda content: content["annotations"][0].update(image_id=[3]),
        lambda content: content["annotations"].append(None),
        lambda content: content["categories"].append({"id": 1, "name": "other"}),
        lambda content: content["categories"].append({"id": 9}),
        lambda content: content.pop("categories"),
        lambda content: content.pop("annotations"),
    ],
)
def test_what_is_unusual_is_left_to_mmdetection(path, change):
    content = copy.deepcopy(CONTENT)
    change(content)
    assert build(read_coco(write(path, content))) is None
    assert open_index(path) is None and [entry.name for entry in path.parent.iterdir()] == ["train.json"]


def test_a_kept_index_serves_until_the_file_changes(path, monkeypatch):
    kept = path.with_name(path.name + SUFFIX)
    first = open_index(path)
    assert first.kept == kept and sorted(path.parent.iterdir()) == [path, kept]
    written = kept.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(annotation_index, "read_coco", None)
        again = open_index(os.path.relpath(path))
    assert kept.stat().st_mtime_ns == written
    for copied in (again, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert same([copied.image(i) for i in range(3)], CONTENT["images"])
    changed = copy.deepcopy(CONTENT)
    changed["images"][0]["width"] = 65
    os.utime(write(path, changed), ns=(1, 2))
    assert open_index(path).image(0)["width"] == 65 and first.image(0)["width"] == 64
    with pytest.raises(OSError, match="is not there any more"):
        pickle.loads(pickle.dumps(first))


def test_small_files_leave_nothing_behind(path, monkeypatch):
    monkeypatch.setattr(annotation_index, "LARGE", 2**24)
    index = open_index(path)
    keep(index, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["train.json"]
    copied = pickle.loads(pickle.dumps(index))
    assert same([copied.image(i) for i in range(3)], CONTENT["images"])


@pytest.mark.parametrize("cut", [0, 3, 20, 200, -1])
def test_half_a_file_is_no_index(path, cut):
    kept = open_index(path).kept
    whole = kept.read_bytes()
    kept.write_bytes(whole[:cut])
    if cut in (0, 3):  # not known to be one of ours
        assert open_index(path).kept != kept and kept.read_bytes() == whole[:cut]
    else:
        assert open_index(path).kept == kept and kept.read_bytes() == whole


def test_where_nothing_can_be_written_it_is_kept_with_temporary_files_or_in_memory(path, tmp_path, caplog):
    beside = path.with_name(path.name + SUFFIX)
    beside.write_text("the user's")
    elsewhere = open_index(path)
    assert elsewhere.kept.parent == tmp_path / f"temporary/yolox_ops-{os.getuid()}"
    assert open_index(path).kept == elsewhere.kept and beside.read_text() == "the user's"
    elsewhere.kept.write_text("somebody's")
    in_memory = open_index(path)
    assert in_memory.kept is None and same(in_memory.image(0), CONTENT["images"][0])
    elsewhere.kept.parent.chmod(0o777)
    beside.unlink()
    with pytest.raises(OSError, match="only its owner can write to: remove it"):
        open_index(path)


@pytest.mark.parametrize("hinder", [
    lambda beside, path: beside.mkdir(), lambda beside, path: beside.symlink_to("nowhere"),
    lambda beside, path: beside.write_bytes(b""),
])  # fmt: skip
def test_whatever_stands_in_its_place_hinders_nobody(path, hinder):
    hinder(path.with_name(path.name + SUFFIX), path)
    assert same(open_index(path).content(), CONTENT)
    assert len(list(path.parent.iterdir())) == 2


def test_a_long_name_hinders_nobody(path):
    long = path.rename(path.with_name("a" * 240 + ".json"))
    assert same(open_index(long).content(), CONTENT)


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be another user")
def test_an_index_that_another_user_may_not_read_hinders_nobody(path, tmp_path):
    open_index(path).kept.chmod(0o600)
    for folder in (tmp_path, path.parent, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "temporary").chmod(0o777)
    path.chmod(0o644)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            os._exit(0 if same(open_index(path).content(), CONTENT) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_was_exchanged_is_read_again(path):
    """By one of the same size and time, as an archive may bring."""
    open_index(path)
    about = path.stat()
    changed = path.read_text().replace('"width": 64', '"width": 46')
    path.write_text(changed)
    os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert open_index(path).image(0)["width"] == 46


def _keep_in_turns(path, barrier, results, folder):
    annotation_index.tempfile.gettempdir = lambda: str(folder)
    index = build(read_coco(path))
    for _ in range(20):
        barrier.wait()
        try:
            results.put(repr(annotation_index._keep(index, path).image(0)))
        except BaseException as error:
            results.put(repr(error))


def test_processes_that_know_nothing_of_each_other_keep_whole_files(path, tmp_path):
    """As two jobs with a folder for temporary files each."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        args = (path, barrier, results, tmp_path / str(number))
        processes.append(context.Process(target=_keep_in_turns, args=args))
        processes[-1].start()
    found = {results.get(timeout=60) for _ in range(60)}
    for process in processes:
        process.join()
    assert found == {repr(CONTENT["images"][0])}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["train.json", f"train.json{SUFFIX}"]


def _open(path, barrier, results):
    read = []
    annotation_index.read_coco = lambda path: read.append(path) or read_coco(path)
    barrier.wait()
    index = open_index(path)
    results.put((len(read), repr(index.annotations(1)), str(index.kept)))


def test_of_processes_that_start_at_a_time_one_reads_the_file(path):
    count, context = 6, multiprocessing.get_context("fork")
    barrier, results = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=_open, args=(path, barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(reads for reads, _, _ in found) == [0] * (count - 1) + [1]
    assert len({rest for _, *rest in map(list, found) for rest in rest}) == 2
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["train.json", f"train.json{SUFFIX}"]
