"""Input as nobody should give it: annotation files, images, checkpoints, configs and command lines."""

import copy
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from hypothesis import strategies as st
from trying import Case, Link, Special

Draw = Callable[[st.SearchStrategy], Any]

# What JSON has for a value, as text.
ODD_JSON = (
    "null", "true", "false", '"x"', '""', '"7"', "[]", "{}", "0", "-1", "1", "0.5", "-0.0", "1e999", "-1e999", "NaN",
    "Infinity", "-Infinity", "1e-320", "1e300", "9007199254740993", "4294967296", "1" + "0" * 400, "[[]]",
    '{"a": {"b": [1]}}', "[1, 2, 3, 4]", "[1, 2]", "[0, 0, 0, 0]", "[-5, -5, 1e6, 1e6]", "[1, 1, -3, 4]",
    '["1", "2", "3", "4"]', "[1e308, 1e308, 1e308, 1e308]", "[1, 1, 1e-30, 1e-30]", "[NaN, 1, 2, 3]", "[1, 2, 3, null]",
    "[true, 1, 20, 20]", '"\\ud800"', '"\\u0000"', '"a\\u0000b.jpg"', '"a\\nb"', '"\\u202eabc\\u0301"', '"\\u001b[31m"',
    '"' + "x" * 10000 + '"', '"' + "[" * 500 + '"', "[" * 500 + "]" * 500, '"../../x.jpg"', '"/dev/zero"', '"."',
    '"000001.jpg"', '"disc"', '[[1, 2, 3, 4, 5, 6]]', '{"size": [4, 4], "counts": "abc"}',
    '{"size": [4, 4], "counts": [1, 2]}', "[[1]]", '"\\ud83d\\ude00"',
)  # fmt: skip
ODD_PLACES = ("data", "here", "nothing", "one.jpg", "link", "loop", "pipe", "unreadable", "config.py", "some.pth")


def odd_files() -> dict[str, Any]:
    """Beside the usual ones, for arguments and configs to name."""
    return {"link": Link("nothing"), "loop": Link("loop"), "pipe": Special("pipe"), "unreadable": Special("unreadable")}


def swapped(draw: Draw, content: Any, values: Sequence[Any], depth: int = 8) -> Any:
    """The same with a value changed, left out or twice there, in place."""
    at = content
    for _ in range(depth):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return content
        key = draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not draw(st.integers(0, 3)):
            break
        at = at[key]
    else:
        return content
    kind = draw(st.sampled_from(("value", "value", "value", "value", "none", "twice", "other")))
    if kind == "value":
        at[key] = draw(st.sampled_from(values))
    elif kind == "none":
        del at[key]
    elif kind == "twice" and isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    elif kind == "other":
        at[key] = copy.deepcopy(at[draw(st.sampled_from(keys))])
    return content


def cut_or_flipped(draw: Draw, data: bytes) -> bytes:
    """Bytes that a disk, a network or an editor has spoilt."""
    data = bytearray(data)
    kind = draw(st.sampled_from(("cut", "flip", "flip", "zeros", "more", "missing", "empty")))
    if kind == "empty" or not data:
        return b""
    place = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            data[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    elif kind == "more":
        data += draw(st.binary(min_size=1, max_size=64))
    else:
        del data[place : place + draw(st.integers(1, 64))]
    return bytes(data)


# Annotation files


class Raw(str):
    """A piece of JSON as it is."""


def as_json(content: Any) -> str:
    """JSON with `Raw` in it."""
    if isinstance(content, Raw):
        return str(content)
    if isinstance(content, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_json(value)}" for key, value in content.items()) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(map(as_json, content)) + "]"
    return json.dumps(content)


def entry_changes(draw: Draw, content: Any) -> None:
    """Something that is wrong between entries."""
    kind = draw(st.sampled_from(("ids", "owner", "category", "order", "big", "crowds", "empty", "names", "string ids")))
    images, annotations, categories = content["images"], content["annotations"], content["categories"]
    some = draw(st.sampled_from([part for part in (images, annotations, categories) if part] or [[{}]]))
    if kind == "ids":
        draw(st.sampled_from(some))["id"] = Raw(draw(st.sampled_from(ODD_JSON)))
    elif kind == "owner":
        for entry in annotations:
            entry["image_id"] = draw(st.sampled_from((1, 2, 99, -1)))
    elif kind == "category":
        value = draw(st.sampled_from((0, -1, 2**40, "1", 1.0, 1.5, 90)))
        for entry in categories[:1]:
            entry["id"] = value
    elif kind == "order":
        some.reverse()
    elif kind == "big":
        for entry in annotations:
            entry["bbox"] = [
                Raw(draw(st.sampled_from(("-1e9", "1e9", "0", "-0.0", "1e-9", "1e154", "3")))) for _ in "xywh"
            ]
    elif kind == "crowds":
        for entry in annotations:
            entry["iscrowd"] = Raw(draw(st.sampled_from(('"1"', "1", "2", "-1", "0.5", "true", "null", "[]"))))
    elif kind == "empty":
        del some[:]
    elif kind == "names":
        for entry in images:
            entry["file_name"] = images[0]["file_name"]
    elif kind == "string ids":
        for entry in images:
            entry["id"] = str(entry["id"])
        for entry in annotations:
            entry["image_id"] = str(entry["image_id"])


def field_changes(draw: Draw, content: Any) -> None:
    """Odd values of a field in some entries of a kind."""
    kind, fields = draw(st.sampled_from((
        ("images", ("id", "file_name", "width", "height", "coco_url", "license")),
        ("categories", ("id", "name", "supercategory")),
        ("annotations", ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")),
    )))  # fmt: skip
    field, value = draw(st.sampled_from(fields)), Raw(draw(st.sampled_from(ODD_JSON)))
    for entry in content[kind][: draw(st.sampled_from((1, 1, 2, 100)))]:
        entry[field] = value


def annotation_text(draw: Draw, text: str) -> Any:
    """Changes of the file as a whole."""
    kind = draw(st.sampled_from(("as it is",) * 12 + (
        "BOM", "UTF-16", "UTF-32", "Latin-1", "spoilt", "spoilt", "spoilt", "spoilt", "deep", "names twice", "commas",
        "comment", "lines", "number", "folder", "pipe", "unreadable", "loop", "null", "spaces",
    )))  # fmt: skip
    at = draw(st.integers(0, len(text) - 1))
    return {
        "as it is": lambda: text.encode(),
        "BOM": lambda: b"\xef\xbb\xbf" * draw(st.integers(1, 2)) + text.encode(),
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-32": lambda: text.encode("utf-32"),
        "Latin-1": lambda: text.replace("disc", "d\xeesc").encode("latin-1"),
        "spoilt": lambda: cut_or_flipped(draw, text.encode()),
        "deep": lambda: (text[:-1] + ', "info": ' + "[" * 100000 + "]" * 100000 + "}").encode(),
        "names twice": lambda: (text[:-1] + ', "images": [], "categories": 7}').encode(),
        "commas": lambda: text.replace("}]", "},]").encode(),
        "comment": lambda: b"// from an editor\n" + text.encode(),
        "lines": lambda: "\n".join(text.split(", ")).encode(),
        "number": lambda: b"1" * draw(st.integers(1, 6000)),
        "folder": lambda: Special("folder"),
        "pipe": lambda: Special("pipe"),
        "unreadable": lambda: Special("unreadable"),
        "loop": lambda: Link("instances_train2017.json"),
        "null": lambda: (text[:at] + "\0" + text[at:]).encode(),
        "spaces": lambda: (" " * 10000 + text + "\n" * 10000).encode(),
    }[kind]()


ON_DATA = (
    ("train", True, ["--out=", "--config=@/config.py"]),
    ("train", True, ["--out=", "--config=@/config.py"]),
    ("train", True, ["--out=", "--config=@/config.py"]),
    ("train", True, ["--out=", "--model=s"]),
    ("train", True, ["--out=", "--model=s", "--img-size=64"]),
    ("train", False, ["--out=", "--config=@/config.py", "--epochs=1"]),
    ("look", False, ["--out=", "--config=@/config.py"]),
    ("look", False, ["--out=", "--config=@/config.py"]),
    ("test", False, ["--out=", "--pth-path=@/some.pth"]),
    ("test", False, ["--out=", "--pth-path=@/some.pth"]),
)  # fmt: skip


def on_data(draw: Draw, files: dict[str, Any], single: Any = None) -> Case:
    """A command that reads a data set.

    Args:
        single: in the place of both annotation files, for --val-fraction.
    """
    command, checks_alone, options = draw(st.sampled_from(ON_DATA))
    options = [
        f"--{'out' if command == 'look' else 'work-dir'}=@/out" if option == "--out=" else option for option in options
    ]
    options.append("--data-path=@/data")
    if command != "look":
        options.append("--device=cpu")
    if single is not None and command == "train" and draw(st.booleans()):
        files = {"data/annotations.json": single, "data/images": Link("train2017"), "data/annotations": None}
        options.append("--val-fraction=0.5")
    return Case(command, options, files, checks_alone)


def has_entries(content: Any) -> bool:
    """Whether no change has spoilt it for those of entries."""
    parts = [content.get(part) for part in ("images", "annotations", "categories")]
    return all(isinstance(part, list) and all(type(entry) is dict for entry in part) for part in parts)


@st.composite
def annotations(draw: Draw, texts: dict[str, str]) -> Case:
    """A command with an odd annotation file.

    Args:
        texts: of both annotation files, by split.
    """
    split = draw(st.sampled_from(("train", "train", "val")))
    content = json.loads(texts[split])
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 1, 2, 3)))):
        change = draw(st.sampled_from((entry_changes, field_changes, field_changes, field_changes, swapped)))
        if change is swapped:
            content = swapped(draw, content, [Raw(value) for value in ODD_JSON])
        elif has_entries(content):
            change(draw, content)
    file = annotation_text(draw, as_json(content))
    return on_data(draw, {f"data/annotations/instances_{split}2017.json": file}, file)


# Images


def encoded(draw: Draw, image: Any) -> tuple[str, bytes]:
    """An image in a format that OpenCV writes, and perhaps an unusual one of it."""
    kind = draw(
        st.sampled_from((".jpg", ".jpg", ".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".jp2", ".gif", ".avif"))
    )
    depth = draw(
        st.sampled_from(("usual", "usual", "usual", "grey", "alpha", "16 bits", "float", "1x1", "wide", "tall"))
    )
    if depth == "grey":
        image = image[..., 0]
    elif depth == "alpha":
        image = np.dstack([image, image[..., :1]])
    elif depth == "16 bits":
        image = image.astype(np.uint16) * 257
    elif depth == "float":
        image = image.astype(np.float32) / 7
    elif depth in ("1x1", "wide", "tall"):
        image = np.full({"1x1": (1, 1, 3), "wide": (1, 10000, 3), "tall": (10000, 1, 3)}[depth], 9, np.uint8)
    if kind == ".gif":
        return kind, gif(draw(st.integers(1, 3)))
    try:
        good, data = cv2.imencode(kind, image)
    except cv2.error:  # of a format that has no such pixels
        good = False
    return (kind, bytes(data)) if good else (".png", bytes(cv2.imencode(".png", image.astype(np.uint8))[1]))


def gif(frames: int) -> bytes:
    """Of 2 x 2 pixels."""
    frame = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x02\x00\x02\x00\x00\x02\x02\x04\x0a\x00"
    return b"GIF89a\x02\x00\x02\x00\x80\x00\x00\xff\x00\x00\x00\xff\x00" + frame * frames + b"\x3b"


def resized_header(draw: Draw, kind: str, data: bytes) -> bytes:
    """With other sizes in the header than the pixels have."""
    width, height = (draw(st.sampled_from((0, 1, 5, 300, 20000, 32767, 65500, 65535))) for _ in "wh")
    found = bytearray(data)
    if kind == ".jpg":
        at = 2
        while at + 9 <= len(found) and found[at] == 0xFF and not 0xC0 <= found[at + 1] <= 0xC2:
            at += 2 + int.from_bytes(found[at + 2 : at + 4], "big")
        found[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == ".png":
        found[16:24] = struct.pack(">II", width * draw(st.sampled_from((1, 30000))), height)
        found[29:33] = struct.pack(">I", zlib.crc32(bytes(found[12:29])))
    elif kind == ".bmp":
        found[18:26] = struct.pack("<ii", width, draw(st.sampled_from((1, -1))) * height)
    elif kind == ".gif":
        found[6:10] = struct.pack("<HH", width, height)
    elif kind == ".ppm":
        found = bytearray(b"P6\n%d %d\n255\n" % (width, height)) + found[15:]
    return bytes(found)


def with_exif(draw: Draw, data: bytes) -> bytes:
    """A JPEG that is turned, or with EXIF that is none."""
    orientation = draw(st.integers(0, 255))
    tiff = (
        b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0]) + bytes(4)
    )
    exif = b"Exif\x00\x00" + draw(st.sampled_from((tiff, tiff, tiff[:9], b"", tiff[:4] + b"\xff\xff\xff\xf0")))
    length = draw(st.sampled_from((len(exif) + 2, len(exif) + 2, 0, 1, 65535)))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", length) + exif + data[2:]


def image_content(draw: Draw, image: Any) -> Any:
    """A file that may be an image."""
    kind = draw(st.sampled_from(("image", "image", "image", "spoilt", "spoilt", "spoilt", "sizes", "sizes", "EXIF",
        "text",
                                 "bytes", "header", "pipe", "folder", "unreadable", "loop", "zip")))  # fmt: skip
    if kind in ("pipe", "folder", "unreadable"):
        return Special(kind)
    name, data = encoded(draw, image)
    return {
        "image": lambda: data,
        "spoilt": lambda: cut_or_flipped(draw, data),
        "sizes": lambda: resized_header(draw, name, data),
        "EXIF": lambda: with_exif(draw, data) if name == ".jpg" else data,
        "text": lambda: draw(
            st.sampled_from(
                (
                    b"<html>",
                    b"",
                    b"version https://git-lfs",
                    b"%PDF-1.4",
                    b"P6\n-1 -1\n255\n",
                    b"P3 99999 99999 255 ",
                    b"II*\x00\xff\xff\xff\xff",
                    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
                    b"#?RADIANCE\n\n-Y 9999 +X 9999\n",
                )
            )
        ),
        "bytes": lambda: draw(st.binary(max_size=200)),
        "header": lambda: data[: draw(st.sampled_from((1, 2, 3, 4, 8, 16, 24, 33, 54, 100)))],
        "loop": lambda: Link("000002.jpg"),
        "zip": lambda: b"PK\x03\x04" + bytes(100),
    }[kind]()


ON_IMAGES = (
    ("train", False, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu", "--epochs=1"]),
    ("train", False, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu",
    "--iterations=1"]),
    ("look", False, ["--out=@/out", "--config=@/config.py", "--data-path=@/data"]),
    ("look", False, ["--out=@/out", "--config=@/config.py", "--data-path=@/data"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/data/train2017", "--device=cpu"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/data/train2017/000002.jpg", "--device=cpu"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/data/*/*2.jpg", "@/odd.mp4", "--device=cpu"]),
    ("test", False, ["--work-dir=@/out", "--pth-path=@/some.pth", "--data-path=@/data", "--device=cpu"]),
    ("test", False, ["--work-dir=@/out", "--pth-path=@/some.pth", "--data-path=@/data", "--device=cpu",
    "--save-dir=@/out/p"]),
)  # fmt: skip


@st.composite
def images(draw: Draw, image: Any) -> Case:
    """A command that reads an odd image, or one that is called a video.

    Args:
        image: the pixels of a usual one.
    """
    command, checks_alone, options = draw(st.sampled_from(ON_IMAGES))
    content = image_content(draw, image)
    split = "val" if command == "test" else draw(st.sampled_from(("train", "train", "val")))
    files = {"odd.mp4" if "@/odd.mp4" in options else f"data/{split}2017/000002.jpg": content}
    return Case(command, options, files, checks_alone, named="" if command in ("look", "predict") else "000002.jpg")


# Checkpoints

ODD_VALUES = (
    None, True, 0, -1, 1, 3, 10**9, 10**400, 0.5, float("nan"), float("inf"), "", "3", "x", "\0", "a\nb", "\ud800",
        b"x",
    [], [1], ["x"], [None], (), (1, 2), {}, {"a": 1}, {1: 2}, {None: None}, set(), 1j,
)  # fmt: skip


def odd_value(draw: Draw) -> Any:
    kind = draw(st.integers(0, 5))
    if kind:
        return copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return draw(st.sampled_from((
        torch.zeros(0), torch.zeros(3), torch.tensor(float("nan")), torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.bool), torch.zeros(1, dtype=torch.complex64), torch.eye(2).to_sparse(),
        torch.zeros(1, dtype=torch.bfloat16), np.float64(0.5), np.zeros(2), np.int64(7), np.array("x"),
    )))  # fmt: skip


ODD_CONFIGS = (
    "", "x", "model = 1", "model = dict(", "model = __import__('os')", "a = [\n" * 300, "data = {}\nmodel = {}", "\0",
    "model = dict(type='YOLOX')", "model = dict(type=7)\ndata = dict(test=dict(pipeline=[]))",
    "x = " + "-" * 3000 + "1",
    "_base_ = 'x.py'", "model = {'type': None}", "a: int = 3", "a.b = 3", "data = dict(test=dict(pipeline=7))",
    "test_dataloader = dict(dataset=dict(pipeline=[]))\nmodel = dict(type='YOLOX')",
    "test_dataloader = dict(dataset=dict(pipeline=[1, 2]))\nmodel = 7\ndata = dict(test=dict(pipeline=[1]))",
    "test_dataloader = 7\nmodel = []\ndata = 7", "model = {1: 2, None: [3]}", "custom_imports = 7",
    "custom_imports = dict(imports=7)",
    "custom_imports = dict(imports=['mmdet.nothing'])", "custom_imports = dict(imports=['yolox_plugin'], other=3)",
)  # fmt: skip


def pickled(draw: Draw) -> bytes:
    """Odd objects, or calls of odd functions."""
    call = draw(st.sampled_from((
        b"cos\nsystem\n(S'touch owned'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"ctorch\nload\n.", b"cnothing\nhere\n.",
        b"cmmengine.logging.history_buffer\nHistoryBuffer\n.", b"cbuiltins\ngetattr\n.", b"c__builtin__\nset\n(]tR.",
        b"cyolox_plugin.run.train\nmain\n(tR.", b"c\n\n.", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
        b"ccollections\nOrderedDict\n(I1\ntR.", b"}(K\x01K\x02u.", b"N.", b"]" * 2000 + b"a" * 1999 + b".",
        b"I" + b"9" * 5000 + b"\n.",
        pickle.dumps({"state_dict": {}}), b"\x80\x02}q\x00.", b"(lp0\n.", b"\x80\xff.", b"g9999\n.",
            b"X\xff\xff\xff\x7f",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"U\x01\xffq\x00.", b"ctorch\nTensor\n(tR.",
        b"ctorch\nfloat99\n.",
    )))  # fmt: skip
    return call


def rezipped(draw: Draw, data: bytes) -> bytes:
    """A checkpoint's archive with odd records."""
    kind = draw(
        st.sampled_from(
            ("more", "without", "renamed", "twice", "pickle", "pickle", "pickle", "packed", "folder", "short")
        )
    )
    into, chosen = io.BytesIO(), draw(st.integers(0, 10**6))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(into, "w") as new:
        records = old.infolist()
        chosen = records[chosen % min(len(records), 8)].filename
        for record in records:
            name, content = record.filename, old.read(record)
            if kind == "pickle" and name.endswith("data.pkl"):
                content = draw(st.sampled_from((None, 1)))
                content = pickled(draw) if content is None else cut_or_flipped(draw, old.read(record))
            if name == chosen:
                if kind == "without":
                    continue
                if kind == "renamed":
                    name = draw(st.sampled_from(("x", "../x", "/x", "data.pkl", "some/data.pkl", "a\nb", "x" * 1000)))
                if kind == "short":
                    content = content[: len(content) // 2]
                if kind == "twice":
                    new.writestr(name, b"x")
                if kind == "folder":
                    name += "/"
            new.writestr(name, content, zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED)
        if kind == "more":
            new.writestr(
                draw(st.sampled_from(("x", "../../x", "some/data/999999", ".data/serialization_id"))), b"x" * 9
            )
    return into.getvalue()


def other_content(draw: Draw, content: Any) -> Any:
    """A checkpoint's content, with something else in it."""
    content = {**content, "state_dict": dict(content["state_dict"]), "meta": dict(content["meta"])}
    part = draw(
        st.sampled_from(
            (
                "meta",
                "meta",
                "meta",
                "meta",
                "state_dict",
                "state_dict",
                "top",
                "optimizer",
                "config",
                "config",
                "alone",
            )
        )
    )
    if part == "meta":
        known = ("epoch", "iter", "hook_msgs", "config", "cfg", "CLASSES", "LABELS", "dataset_meta", "seed", "env_info",
                 "mmdet_version", "mmcv_version", "time", "exp_name", "load_from", "experiment_name",
                 "mmengine_version")  # fmt: skip
        for _ in range(draw(st.integers(1, 2))):
            content["meta"][draw(st.sampled_from(known))] = odd_value(draw)
        if draw(st.integers(0, 5)) == 0:
            content["meta"] = odd_value(draw)
        if draw(st.integers(0, 5)) == 0 and isinstance(content["meta"], dict):
            content["meta"]["dataset_meta"] = {"classes": odd_value(draw)}
    elif part == "config":
        key = "config" if "config" in content["meta"] else "cfg"
        if draw(st.booleans()):
            content["meta"][key] = draw(st.sampled_from(ODD_CONFIGS))
        else:
            text = content["meta"][key]
            content["meta"][key] = cut_or_flipped(draw, text.encode()).decode("utf-8", "replace")
    elif part == "state_dict":
        names = draw(st.lists(st.sampled_from(list(content["state_dict"])[:40]), min_size=1, max_size=3))
        kind = draw(st.sampled_from(("value", "none", "half", "shape", "keys", "nan", "huge")))
        for name in names:
            value = content["state_dict"][name]
            if kind == "none":
                del content["state_dict"][name]
                break
            content["state_dict"][name] = {
                "value": lambda: odd_value(draw), "half": lambda v=value: v.half(), "shape": lambda v=value: v[None],
                "keys": lambda v=value: v, "nan": lambda v=value: v * float("nan"),
                "huge": lambda v=value: (v + 1) * 1e38,
            }[kind]()  # fmt: skip
        if kind == "keys":
            content["state_dict"][draw(st.sampled_from((3, None, "", "x", ("a",), b"x", 1.5, "\ud800")))] = odd_value(
                draw
            )
    elif part == "optimizer":
        known = content.get("optimizer")
        content["optimizer"] = odd_value(draw)
        if isinstance(known, dict) and draw(st.booleans()):
            content["optimizer"] = {**known, draw(st.sampled_from(("state", "param_groups", "x"))): odd_value(draw)}
    elif part == "top":
        content[
            draw(
                st.sampled_from(
                    ("state_dict", "meta", "optimizer", "x", 3, "message_hub", "param_schedulers", "ema_state_dict")
                )
            )
        ] = odd_value(draw)
    else:
        content = draw(
            st.sampled_from(
                (odd_value(draw), content["state_dict"], {"model": odd_value(draw)}, {"model": content["state_dict"]})
            )
        )
    return content


def checkpoint_file(draw: Draw, data: bytes, content: Any) -> Any:
    """A file that may be a checkpoint."""
    kind = draw(
        st.sampled_from(("content",) * 6 + ("spoilt", "spoilt", "zip", "zip", "legacy", "bytes", "special", "end"))
    )
    if kind == "special":
        return draw(
            st.sampled_from((Special("pipe"), Special("folder"), Special("unreadable"), Link("some.pth"), None))
        )
    if kind == "spoilt":
        return cut_or_flipped(draw, data)
    if kind == "end":
        return data[: -draw(st.integers(1, 200))]
    if kind == "zip":
        return rezipped(draw, data)
    if kind == "bytes":
        return draw(
            st.sampled_from((b"", b"PK\x05\x06" + bytes(18), b"PK\x03\x04", pickled(draw), b"<html>", bytes(1000)))
        )
    into = io.BytesIO()
    torch.save(other_content(draw, content), into, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "legacy" and draw(st.booleans()):
        return cut_or_flipped(draw, into.getvalue())
    return into.getvalue()


ON_CHECKPOINTS = (
    ("train", True, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu",
    "--load-from=@/some.pth"]),
    ("train", True, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu", "--resume"]),
    ("train", False, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu", "--resume",
    "--epochs=2"]),
    ("train", False, ["--work-dir=@/out", "--config=@/config.py", "--data-path=@/data", "--device=cpu",
    "--load-from=@/some.pth", "--epochs=1"]),
    ("test", False, ["--work-dir=@/out", "--pth-path=@/some.pth", "--data-path=@/data", "--device=cpu"]),
    ("test", False, ["--work-dir=@/out", "--pth-path=@/some.pth", "--device=cpu"]),
    ("test", False, ["--work-dir=@/out", "--pth-path=@/some.pth", "--data-path=@/data", "--device=cpu",
    "--config=@/config.py"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/one.jpg", "--device=cpu"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/one.jpg", "--device=cpu"]),
    ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/one.jpg", "--device=cpu",
    "--config=@/config.py"]),
    ("export", False, ["--out=@/out/a.onnx", "--pth-path=@/some.pth", "--img-size=32"]),
)  # fmt: skip


@st.composite
def checkpoints(draw: Draw, data: bytes, content: Any) -> Case:
    """A command that reads an odd checkpoint.

    Args:
        data, content: a usual one.
    """
    command, checks_alone, options = draw(st.sampled_from(ON_CHECKPOINTS))
    file = checkpoint_file(draw, data, content)
    name = "some.pth"
    if "--resume" in options:
        name = draw(st.sampled_from(("out/epoch_1.pth", "out/latest.pth")))
    files = {name: file}
    if isinstance(file, Link):
        files[name] = Link(name.rpartition("/")[2])
    return Case(command, options, files, checks_alone)


# Configs

ODD_FILES = (
    b"", b"model = dict(", b"_base_ = 'config.py'", b"_base_ = './config.py'\nmodel = 1", b"_base_ = 'absent.py'",
    b"_base_ = 7",
    b"_base_ = ['some.pth']", b"\xff\xfe\x00", b"# \xe9\nmodel = 1", "model = 'é'".encode("utf-16"), b"\0",
    b"raise ValueError('a\\nb')", b"1 / 0", b"import absent", b"model = undefined", b"while True: break",
    b"x = " + b"(" * 300,
    b"model = dict(type='YOLOX')", b"model = {}\ndata = {}", b"model = lambda: 1", b"_base_ = '/dev/null'",
    b"_base_ = ''",
    b"data = dict(train=1, val=1, test=1)\nmodel = dict()", b"model = dict(_delete_=True)\n_base_ = 'base.py'",
    b"def f(:",
    b"model = '{{ fileBasename }}'", b"model = '{{ _base_.x }}'", b"a = {{ _base_.x }}", b"_base_ = 'https://x/y.py'",
    b"filename = 1",
    b"class A: pass\nmodel = A()", b"model = __import__('collections').OrderedDict(type='x')", b"\xef\xbb\xbfmodel = 1",
    b"model = dict(type='YOLOX')\nmodel.update(model=model)", b"_base_ = 'base.py'\nmodel = None",
    b"_base_ = 'base.py'\ndata = None",
    b"_base_ = 'base.py'\nmodel = [1]",
    b"from mmengine.config import read_base\nwith read_base():\n    from .absent import *",
)  # fmt: skip
ODD_PYTHON = (
    "None", "True", "False", "0", "-1", "1", "7", "2 ** 70", "0.5", "-1.5", "float('nan')", "float('inf')", "''", "'x'",
    "'None'", "b'x'", "()", "[]", "{}", "[1]", "[None]", "['x']", "[[]]", "{'a': 1}", "{1: 2}", "{'type': 'x'}",
    "{'type': 7}",
    "dict(type='Resize')", "[dict(type='Resize')]", "(1, 2)", "(0, 0)", "(-1, -1)", "('a', 'b')", "(1e9, 1e9)",
    "set()", "1j",
    "'/dev/null'", "'..'", "range(3)", "'a\\nb'", "'\\ud800'", "[{}]", "{'type': 'YOLOX'}", "[[1, 2], [3, 4]]",
    "{'type': ''}",
)  # fmt: skip


def places_in(entries: Any, around: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a config has something, at any depth."""
    found = []
    for key in list(entries) if isinstance(entries, dict) else range(len(entries)):
        found.append((*around, key))
        if isinstance(entries[key], (dict, list)):
            found += places_in(entries[key], (*around, key))
    return found


class Source(str):
    """A piece of Python as it is."""

    def __repr__(self) -> str:
        return str(self)


MORE_KEYS = (
    "resume_from", "load_from", "workflow", "log_level", "auto_scale_lr", "custom_hooks", "optimizer_config", "fp16",
    "lr_config", "checkpoint_config", "evaluation", "custom_imports", "work_dir", "device", "seed", "gpu_ids",
    "total_epochs",
    "cudnn_benchmark", "opencv_num_threads", "mp_start_method", "dist_params", "data_root", "classes", "runner",
    "data", "model",
    "train_cfg", "val_cfg", "test_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator",
    "test_evaluator", "optim_wrapper", "param_scheduler", "default_hooks", "env_cfg", "visualizer", "vis_backends",
    "log_processor", "default_scope", "randomness", "resume", "launcher", "experiment_name", "channels_last",
    "img_scale",
    "log_config", "optimizer", "find_unused_parameters", "auto_resume", "backend_args",
)  # fmt: skip


@st.composite
def configs(draw: Draw, entries: Any) -> Case:
    """A command with an odd config.

    Args:
        entries: of a usual one.
    """
    command, checks_alone, options = draw(st.sampled_from((
        ("train", True, ["--work-dir=@/out", "--data-path=@/data", "--device=cpu"]),
        ("train", True, ["--work-dir=@/out", "--data-path=@/data", "--device=cpu"]),
        ("train", True, ["--work-dir=@/out", "--data-path=@/data", "--device=cpu", "--epochs=3"]),
        ("train", False, ["--work-dir=@/out", "--data-path=@/data", "--device=cpu", "--iterations=1"]),
        ("look", False, ["--out=@/out", "--data-path=@/data"]),
        ("test", False, ["--work-dir=@/out", "--data-path=@/data", "--device=cpu", "--pth-path=@/some.pth"]),
        ("predict", False, ["--save-dir=@/out", "--pth-path=@/some.pth", "@/one.jpg", "--device=cpu"]),
        ("export", False, ["--out=@/out/a.onnx", "--pth-path=@/some.pth"]),
    )))  # fmt: skip
    options, files = [*options, "--config=@/config.py"], {}
    kind = draw(st.sampled_from(("values",) * 6 + ("options", "options", "file", "file", "spoilt", "special")))
    text = "".join(f"{name} = {value!r}\n" for name, value in entries.items())
    if kind == "values":
        entries = copy.deepcopy(entries)
        for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
            value = Source(draw(st.sampled_from(ODD_PYTHON)))
            if draw(st.integers(0, 4)) == 0:
                entries[draw(st.sampled_from(MORE_KEYS))] = value
                continue
            known = places_in(entries)
            shallow = [place for place in known if len(place) <= draw(st.integers(1, 5))]
            *around, key = draw(st.sampled_from(shallow or known))
            at = entries
            for step in around:
                at = at[step]
            if draw(st.integers(0, 3)) == 0:
                del at[key]
            else:
                at[key] = value
        files["config.py"] = "".join(f"{name} = {value!r}\n" for name, value in entries.items()).encode()
    elif kind == "file":
        files = {"config.py": draw(st.sampled_from(ODD_FILES)), "base.py": text.encode()}
    elif kind == "spoilt":
        files["config.py"] = cut_or_flipped(draw, text.encode())
    elif kind == "special":
        files["config.py"] = draw(
            st.sampled_from((Special("folder"), Special("pipe"), Special("unreadable"), Link("config.py"), None))
        )
    elif command not in ("predict", "export"):
        known = [".".join(map(str, place)) for place in places_in(entries)]
        keys = st.sampled_from(known) | st.sampled_from(
            (*MORE_KEYS, "", ".", "a..b", "model.", ".model", "0", "data.train.0")
        )
        values = st.sampled_from(("", "None", "True", "1", "-1", "1e9", "nan", "x", "[", "[1,2]", "(1,2)",
            "[(1,2),(3,4)]", "{}",
                                  "a,b", "a=b", "'", '"', "[[", ")", "(,)", "\udcff", "\n", "é", "{'a': 1}",
                                  "1" * 5000))  # fmt: skip
        chosen = draw(st.lists(st.tuples(keys, values), min_size=1, max_size=3))
        options += ["--cfg-options", *(f"{key}={value}" for key, value in chosen)]
    return Case(command, options, files, checks_alone, hosts=True)


# Command lines

ODD_WORDS = (
    "", "0", "1", "-1", "2", "3", "32", "64", "33", "4096", "2147483648", "9" * 5000, "1e9", "0.5", "-0.5", "1.0",
    "nan", "inf",
    "-inf", "x", "None", "é", "\udcff", "a b", "--", "-", "-x", "=", "a=b", "\n", "\u0661", "\uff11", "0x10",
    "1_0", " 1", "~",
    "~nobody", "$HOME", "*", "[", "**", "?", "x" * 300, "x" * 5000,
)  # fmt: skip
ODD_PATHS = (
    *(f"@/{name}" for name in ODD_PLACES), "@", "@/", "@/out", "@/out/x", "@/one.jpg/x", "@/loop/x", "@/data/../out",
        "/dev/null",
    "/dev/null/x", "/proc/self/x", "/proc/x", "/sys/x", "@/data/annotations", "@/data/train2017", "@/" + "x" * 255,
    "@/" + "x" * 256,
    "@/" + "x/" * 2500, "@/é", "@/a\nb", "@/a b", "@/*.jpg", "@/**", "@/[", "@/data/train2017/*.jpg",
    "@/unreadable/x", "@/pipe/x",
    "http://x/y", "s3://x", "here", ".", "..", "@/full", "@/out/\x1b[31m",
    "@/data/annotations/instances_train2017.json",
)  # fmt: skip
LINES = {
    "train": (["--data-path=@/data", "--config=@/config.py", "--work-dir=@/out", "--device=cpu"], (
        "--data-path", "--config", "--model", "--work-dir", "--epochs", "--iterations", "--performance", "--amp",
        "--load-from",
        "--val-fraction", "--img-size", "--seed", "--resume", "--max-restarts", "--devices", "--device", "--batch-size",
        "--cfg-options", "--nnodes", "--node-rank", "--master-port", "--rdzv-id", "--help", "--data_path",
        "--nothing", "--ep")),
    "test": (["--data-path=@/data", "--pth-path=@/some.pth", "--work-dir=@/out", "--device=cpu"], (
        "--data-path", "--config", "--model", "--work-dir", "--pth-path", "--amp", "--save-dir", "--score-thr",
        "--devices",
        "--device", "--batch-size", "--cfg-options")),
    "look": (["--data-path=@/data", "--config=@/config.py", "--out=@/out"], (
        "--data-path", "--config", "--model", "--out", "--seed", "--batch-size", "--cfg-options", "--img-size")),
    "predict": (["--pth-path=@/some.pth", "@/one.jpg", "--save-dir=@/out", "--device=cpu"], (
        "--pth-path", "--config", "--save-dir", "--score-thr", "--batch-size", "--device", "--amp", "")),
    "export": (["--pth-path=@/some.pth", "--out=@/out/a.onnx"], (
        "--pth-path", "--out", "--config", "--img-size", "--nms", "--opset", "--check")),
}  # fmt: skip


GOOD = {
    "--epochs": ("1", "7", "1000000"), "--iterations": ("1", "9"), "--amp": ("float32", "bfloat16", "float16"),
    "--model": ("s", "x"),
    "--val-fraction": ("0.5", "0.001", "0.999"), "--img-size": ("32", "64", "9984"), "--seed": ("0", "7", "2147483647"),
    "--max-restarts": ("0", "1"), "--devices": ("1", "2"), "--batch-size": ("1", "3", "1000"), "--score-thr": ("0",
    "1", "-1", "nan"),
    "--load-from": ("@/some.pth", "@/one.jpg"), "--work-dir": ("@/out", "@/out/a/b", "@/data/out", "here"),
    "--nnodes": ("1", "2"),
    "--config": ("@/config.py", "yolox_s_8x8_300e_coco", "yolox_demo", "@/one.jpg"), "--opset": ("11", "13"),
    "--save-dir": ("@/out/p", "@/data"),
    "--cfg-options": ("log_level=DEBUG", "a.b.c=1", "model.type=FCOS", "model.bbox_head.num_classes=3"),
    "": ("@/data", "@/one.jpg", "@/data/*/*.jpg"),
}  # fmt: skip


@st.composite
def lines(draw: Draw) -> Case:
    """A command with odd options. Where several processes would be started, it ends after its checks."""
    command = draw(
        st.sampled_from(("train", "train", "train", "train", "test", "look", "predict", "predict", "export"))
    )
    usual, options = LINES[command]
    usual = [option for option in usual if draw(st.integers(0, 19))]
    chosen = []
    for name in draw(st.lists(st.sampled_from(options), min_size=1, max_size=4)):
        odd = st.sampled_from(ODD_WORDS) | st.sampled_from(ODD_PATHS)
        value = draw(st.sampled_from(GOOD[name]) if name in GOOD and draw(st.booleans()) else odd)
        form = draw(st.integers(0, 9)) if name else 1
        # `--name=--` is nothing to argparse of Python before 3.13, for which it asks no type.
        chosen += [name] if form == 0 else [name, value] if form < 3 or value == "--" else [f"{name}={value}"]
    files = odd_files()
    if command == "train" and draw(st.integers(0, 5)) == 0:
        files["out/config.py"] = b"years of work"
    return Case(command, [*usual, *chosen], files, checks_alone=True)
