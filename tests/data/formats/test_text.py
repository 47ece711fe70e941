"""Numbers in text files: which are accepted, and which are refused with their location."""

from pathlib import Path

import pytest

from focaldet.data.formats.text import as_number, quantity
from focaldet.data.problems import Location
from focaldet.errors import DataError

LOCATION = Location(Path("train.csv"), "line 3", "x1")


@pytest.mark.parametrize(("text", "number"), [("12", 12), (" -0.5\t", -0.5), ("+1e3", 1000), (".25", 0.25), ("007", 7)])
def test_plain_numbers_are_taken(text, number):
    assert as_number(text, LOCATION) == number


@pytest.mark.parametrize(
    "text", ["1_000", "1_0.5", "١٢", "１２", "1२", "\xa05", "", "x", "0x10", "1,5", "nan", "inf", "-Infinity", "1e999"]
)
def test_anything_else_is_refused_with_its_location(text):
    with pytest.raises(DataError, match="must be a fraction") as caught:
        as_number(text, LOCATION, "a fraction")
    assert (caught.value.file, caught.value.record, caught.value.field) == ("train.csv", "line 3", "x1")


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (1200, ("box", "boxes"), "1,200 boxes"),
        (1, ("box", "boxes"), "1 box"),
    ],
)
def test_a_noun_agrees_with_its_count(count, nouns, text):
    assert quantity(count, *nouns) == text
