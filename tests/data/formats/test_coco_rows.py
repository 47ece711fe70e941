"""The fast way through COCO's long lists gives what the careful one gives, and leaves everything odd to it."""

import dataclasses
import json
import random
import tracemalloc

import pytest
import torch

from focaldet.data.formats import coco, coco_rows
from focaldet.data.formats.coco_rows import read_plain
from focaldet.data.formats.reading import Reading
from focaldet.errors import DataError
from tests.data.datasets import coco_document

TENSORS = ("owners", "boxes", "sides", "labels", "flags", "areas")


def made_up(seed: int, num_images: int = 9) -> dict:
    """Ids in no order, and what else writers of COCO files put into a row: masks, attributes, dates, nothing."""
    rng = random.Random(seed)
    ids = rng.sample(range(-5, 10**12), num_images)
    images = [
        {"license": 1, "file_name": f"é {i}.jpg", "coco_url": "http://a/b", "height": 40, "width": 60, "id": number}
        | ({"date_captured": "2013-11-14 11:18:45"} if rng.random() < 0.5 else {})
        for i, number in enumerate(ids)
    ]
    rows = []
    for number in rng.sample(range(10**6), 6 * num_images):
        box = [rng.randrange(30), rng.random() * 20, 5, 2.5]
        row = {"id": number, "image_id": rng.choice(ids), "category_id": rng.choice([7, 2, 90]), "bbox": box}
        extras = [
            {"area": rng.choice([12, 7.25, None])},
            {"iscrowd": rng.choice([0, 1, False])},
            {"ignore": rng.choice([0, 1])},
            {"segmentation": [[rng.random() * 30 for _ in range(8)]]},
            {"segmentation": {"counts": [1, 20, 3], "size": [40, 60]}},
            {"attributes": {"occluded": False, "track": {"id": 4, "of": []}}},
        ]
        row = dict(pair for extra in rng.sample(extras, 3) for pair in extra.items()) | row
        rows.append(row)
    categories = [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 7, "name": "cat", "supercategory": "x"}]
    return {"info": {"url": "x"}, "images": images, "annotations": rows, "categories": categories}


def carefully(file, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_plain", lambda file: None)
        return coco.read_coco_file(file, name="x", look_up=False, **options)


def assert_equal_records(records, expected) -> None:
    for name in TENSORS:
        torch.testing.assert_close(getattr(records, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    same = ("image_ids", "paths", "stated_sizes", "classes", "problems")
    assert [getattr(records, name) for name in same] == [getattr(expected, name) for name in same]
    for name, number in (("image_location", len(records.paths)), ("box_location", len(records.owners))):
        for k in range(number):
            assert getattr(records, name)(k) == getattr(expected, name)(k)


STYLES = {
    "as json writes it": {},
    "dense": {"separators": (",", ":")},
    "indented": {"indent": 2},
    "spaces": {"separators": (" , ", " : ")},
    "letters": {"ensure_ascii": False},
}


@pytest.mark.parametrize("window_bytes", [7, 100, 1 << 20])
@pytest.mark.parametrize("style", STYLES)
def test_records_are_those_of_the_careful_reading(tmp_path, monkeypatch, style, window_bytes):
    monkeypatch.setattr(coco_rows, "WINDOW_BYTES", window_bytes)
    for seed in range(3):
        document = made_up(seed)
        if seed == 1:
            document = dict(reversed(document.items()))
        file = tmp_path / "a.json"
        file.write_text(json.dumps(document, **STYLES[style]), encoding="utf-8")
        assert read_plain(file) is not None
        records = coco.read_coco_file(file, name="x", look_up=False)
        assert len(records.owners) == 54
        assert_equal_records(records, carefully(file, monkeypatch))


def test_real_files_are_plain(real_data, monkeypatch):
    for file in sorted((real_data / "coco_mini" / "annotations").glob("instances_*.json")):
        assert read_plain(file) is not None
        assert_equal_records(coco.read_coco_file(file, name="x", look_up=False), carefully(file, monkeypatch))


def spoil(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


ODD = {
    "a key twice": ('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 0'),
    "a key twice, spelled otherwise": ('"iscrowd": 0', '"iscrowd": 0, "\\u0069scrowd": 1'),
    "a key twice, with a space": ('"iscrowd": 0', '"iscrowd": 0, "iscrowd" : 1'),
    "a key twice, with a tab": ('"iscrowd": 0', '"iscrowd": 0, "iscrowd"\t: 1'),
    "an ignored key twice": ('"iscrowd": 0', '"iscrowd": 0, "a": 1, "a": 1'),
    "a nested key twice": ('"iscrowd": 0', '"iscrowd": 0, "a": {"b": 1, "b": 2}'),
    "a key twice in an image": ('"width": 64', '"width": 64, "width": 65'),
    "a key twice in an image, and a colon": ('"width": 64', '"width": 64, "width": 65, "a": "b\\":c"'),
    "a key twice in a class": ('"name": "dog"', '"name": "dog", "name": "cow"'),
    "a list twice": ('"categories"', '"images": [], "categories"'),
    "a list twice, as an object": ('"categories"', '"images": {}, "categories"'),
    "an id as a text": ('"id": 501', '"id": "501"'),
    "an id twice": ('"id": 501', '"id": 500'),
    "no id": ('"id": 501, ', ""),
    "an id of many digits": ('"id": 501', f'"id": {2**63}'),
    "an image that is not there": ('"image_id": 100', '"image_id": 99'),
    "a class that is not there": ('"category_id": 3', '"category_id": 4'),
    "an image twice": ('"id": 101', '"id": 100'),
    "a name that is no text": ('"file_name": "a.png"', '"file_name": 5'),
    "a class without a name": ('"name": "dog"', '"name": " "'),
    "a box of three": ("[8, 4, 32, 32]", "[8, 4, 32]"),
    "a box of texts": ("[8, 4, 32, 32]", '[8, 4, 32, "32"]'),
    "a box of more than a float": ("[8, 4, 32, 32]", f"[8, 4, 32, 1{'0' * 400}]"),
    "a box with a flag": ("[8, 4, 32, 32]", "[8, 4, 32, true]"),
    "not a number": ("[8, 4, 32, 32]", "[8, 4, 32, NaN]"),
    "a negative area": ('"area": 1024', '"area": -1'),
    "an endless area": ('"area": 1024', '"area": 1e999'),
    "a flag of 2": ('"iscrowd": 0', '"iscrowd": 2'),
    "a flag that is null": ('"iscrowd": 0', '"iscrowd": null'),
    "a row that is none": ('[{"image_id"', '[5, {"image_id"'),
    "a row that is none, at the end": ('"iscrowd": 0}]', '"iscrowd": 0}, 5]'),
    "text behind the end": ('"name": "cat"}]}', '"name": "cat"}]} {}'),
    "a comma too many": ('"iscrowd": 0}]', '"iscrowd": 0},]'),
    "half of a character": ('"a.png"', '"\\ud800.png"'),
    "a zero before a number": ('"area": 1024', '"area": 01024'),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_left_to_the_careful_reading(tmp_path, odd):
    file = tmp_path / "a.json"
    file.write_text(spoil(json.dumps(coco_document()), ODD[odd]))
    assert read_plain(file) is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"images": [', b'{"images": [], "annotations": []}', b"\0" * 100])
def test_what_is_empty_or_cut_off_too(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    assert read_plain(file) is None
    assert read_plain(tmp_path / "missing.json") is None


def test_a_key_twice_is_refused_with_its_name(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(spoil(json.dumps(coco_document()), ODD["a key twice"]))
    with pytest.raises(DataError, match=r"a\.json: has the key 'iscrowd' twice in one object"):
        coco.read_coco_file(file, name="x", look_up=False)


def outcome(read) -> tuple:
    """The records that a reading gives, or the error that it ends with."""
    try:
        records = read()
    except DataError as error:
        return (str(error),)
    values = {name: getattr(records, name).tolist() for name in TENSORS}
    plain = {key: records.problems.counts[key] for key in sorted(records.problems.counts)}
    return repr(values), records.paths, records.image_ids, records.stated_sizes, repr(records.classes), plain


@pytest.mark.parametrize("lenient", [False, True])
def test_damaged_files_end_alike_on_both_ways(tmp_path, monkeypatch, lenient):
    rng = random.Random(0)
    file, num_plain, num_read = tmp_path / "a.json", 0, 0
    pieces = [*'{}[],:"\\ 0x-', "1e5", "null", '"id": 1,', "},{", '"images": [']
    for turn in range(600):
        text = json.dumps(made_up(turn, num_images=2))
        for _ in range(rng.choice([1, 1, 2])):
            begin = rng.randrange(len(text))
            text = text[:begin] + rng.choice(pieces) + text[begin + rng.choice([0, 0, 1, 5]) :]
        file.write_text(text)
        num_plain += read_plain(file) is not None
        fast = outcome(lambda: coco.read_coco_file(file, Reading(lenient=lenient), name="x", look_up=False))
        assert fast == outcome(lambda: carefully(file, monkeypatch, reading=Reading(lenient=lenient))), text
        num_read += len(fast) > 1
    assert 20 < num_plain < num_read < 600


def test_the_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    document = made_up(0, num_images=200)
    for row in document["annotations"]:
        row["segmentation"] = [[0.125] * 500]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(document))
    monkeypatch.setattr(coco_rows, "WINDOW_BYTES", 1 << 16)
    tracemalloc.start()
    try:
        plain = read_plain(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plain is not None and len(plain.annotations.owners) == 1200
    assert peak < file.stat().st_size / 2


def test_locations_are_those_of_the_table(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(coco_document()))
    plain = read_plain(file)
    assert plain is not None and dataclasses.is_dataclass(plain.annotations)
    assert plain.annotations.location(2, "area") == (file, "annotations[2] (id 502)", "area")
