"""Problems count everything, list a bounded part of it, and put the worst first."""

from pathlib import Path

from focaldet.data.problems import LISTED_PER_KIND, Location, Problem, Problems


def clipped(i: int) -> Problem:
    return Location(Path("x.json"), f"annotations[{i}]", "bbox").problem("warning", "box clipped", f"number {i}")


def test_all_are_counted_and_a_bounded_number_is_listed():
    problems = Problems()
    made = []
    problems.add_all("warning", "box clipped", 10_000, lambda k: made.append(k) or clipped(k))
    problems.add(clipped(10_000))
    assert problems.count() == 10_001
    assert len(problems.examples) == len(made) == LISTED_PER_KIND
    assert problems.lines(listed=True)[-1] == f"  … and {10_001 - LISTED_PER_KIND} more"


def test_extend_adds_counts_and_keeps_the_bound():
    first, second = Problems(), Problems()
    for i in range(LISTED_PER_KIND):
        first.add(clipped(i))
        second.add(clipped(i))
    second.add(Problem("error", "image unusable", "gone", "a.jpg"))
    first.extend(second)
    assert first.count("warning") == 2 * LISTED_PER_KIND
    assert first.count("error") == 1
    assert len(first.examples) == LISTED_PER_KIND + 1


def test_lines_put_the_worst_first_and_name_the_location():
    problems = Problems()
    problems.add(Problem("note", "polygon", "a polygon", "a.txt", "line 1"))
    problems.add(clipped(4))
    problems.add(Problem("error", "image unusable", "gone", "a.jpg"))
    lines = problems.lines()
    assert [line.split(":")[0] for line in lines] == ["error", "warning", "note"]
    assert lines[1] == "warning: box clipped: 1 (first: x.json · annotations[4] · bbox: number 4)"


def test_nothing_found():
    problems = Problems()
    problems.add_all("warning", "box clipped", 0, clipped)
    assert problems.lines() == [] and problems.count() == 0 and not list(problems)
    assert problems.to_dict() == {"counts": [], "problems": []}


def test_to_dict_is_json():
    problems = Problems()
    problems.add(clipped(1))
    assert problems.to_dict()["counts"] == [{"severity": "warning", "kind": "box clipped", "count": 1}]
    assert problems.to_dict()["problems"][0]["record"] == "annotations[1]"
