"""Some of the classes of a data set, and the classes of one split in another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from focaldet.data.dataset import OTHER_CLASS, Classes, Dataset
from focaldet.data.formats.text import brief, hint, list_names, quantity
from focaldet.data.problems import Problem, Problems
from focaldet.errors import ConfigError, DataError


def select_classes(dataset: Dataset, names: Sequence[str], others: Literal["background", "ignore", "error"]) -> Dataset:
    """The dataset with the classes of these names alone, in the order of the data; all of them where none is named.

    Boxes of other classes are left out, flagged as neither object nor background, or refused; a note counts them.

    Raises:
        ConfigError: a name that no class has.
        DataError: a box of another class, where these are refused.
    """
    if not names:
        return dataset
    known = dataset.classes.names
    wanted = [part for name in names for part in ([name] if name in known else name.split(","))]
    wanted = [name.strip() for name in wanted if name.strip()]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"data.classes: the data have no class {brief(name)}{hint(name, known)}")
    kept = [label for label, name in enumerate(known) if name in wanted]
    new_label = torch.full((len(known),), -1, dtype=torch.int32)
    new_label[kept] = torch.arange(len(kept), dtype=torch.int32)
    labels = new_label[dataset.labels.long()]
    number = int((labels < 0).sum())
    if number and others == "error":
        other = known[int(dataset.labels[labels < 0][0])]
        problem = f'split "{dataset.name}" has {quantity(number, "box", "boxes")} of other classes, such as'
        raise DataError(f"{problem} {brief(other)}; data.other-classes says what they are", file=dataset.root)
    ids = tuple(dataset.classes.category_ids[label] for label in kept)
    file_ids = dataset.classes.file_ids
    classes = Classes(
        tuple(known[label] for label in kept), ids, None if file_ids is None else tuple(file_ids[i] for i in kept)
    )
    changed = replace(dataset, classes=classes, labels=labels)
    if others == "ignore":
        flags = torch.where(labels < 0, dataset.flags | OTHER_CLASS, dataset.flags)
        changed = replace(changed, labels=labels.clamp(min=0), flags=flags)
        outcome = "neither object nor background"
    else:
        changed = changed.select_boxes(labels >= 0)
        outcome = "background"
    if number:
        message = f"{quantity(number, 'box', 'boxes')} of classes that are not among data.classes: {outcome}"
        dataset.problems.add(Problem("note", "other classes", message, str(dataset.root), f'split "{dataset.name}"'))
    return changed


def with_classes(dataset: Dataset, classes: Classes, *, strict: bool = False) -> Dataset:
    """The dataset with its labels renumbered by `classes`; classes of equal names are the same.

    A class whose name differs from one of `classes` in case alone is that class, with a warning; boxes of classes that
    are not in `classes` are left out, with a warning: nothing could detect them. `Classes.own_ids` stay those of the
    dataset's own file. A note names the classes that have none there.

    Raises:
        DataError: with `strict`, where the dataset has boxes of a class that is not in `classes`.
    """
    if dataset.classes == classes:
        return dataset
    problems = Problems()
    problems.extend(dataset.problems)
    known = _labels_of(dataset, classes, problems, strict=strict)
    labels = torch.tensor([known.get(name, -1) for name in dataset.classes.names], dtype=torch.int32)
    numbers = {
        known.get(name): number for name, number in zip(dataset.classes.names, dataset.classes.own_ids, strict=True)
    }
    own_ids = tuple(numbers.get(label) for label in range(len(classes)))
    if absent := [name for name, own in zip(classes.names, own_ids, strict=True) if own is None]:
        message = f"result files omit detections of classes that only the training split has: {list_names(absent)}"
        problems.add(Problem("note", "class absent", message, str(dataset.root), f'split "{dataset.name}"'))
    changed = replace(
        dataset,
        classes=replace(classes, file_ids=None if own_ids == classes.category_ids else own_ids),
        labels=labels[dataset.labels.long()],
        problems=problems,
    )
    return changed.select_boxes(changed.labels >= 0)


def _labels_of(dataset: Dataset, classes: Classes, problems: Problems, *, strict: bool) -> dict[str, int]:
    """The label of each name in `dataset` that is a class of `classes`, and warnings of the others."""
    known = {name: label for label, name in enumerate(classes.names)}
    by_case = {name.casefold(): name for name in classes.names}
    present = set(dataset.labels.tolist())
    boxes = dataset.labels.long().bincount(minlength=len(dataset.classes)).tolist()
    where = f'split "{dataset.name}"'
    strange = [name for i, name in enumerate(dataset.classes.names) if i in present and name not in known]
    if strict and strange:
        names = list_names(map(brief, strange))
        problem = f"{where} has boxes of classes that are not in the training split: {names}"
        raise DataError(problem + hint(strange[0], known), file=dataset.root)
    taken = set(dataset.classes.names)
    for label, name in enumerate(dataset.classes.names):
        if label not in present or name in known:
            continue
        trained = by_case.get(name.casefold())
        if trained is not None and trained not in taken:
            known[name] = known[trained]
            message = f"{brief(name)} is taken for {brief(trained)} of the training split, which differs in case alone"
            problems.add(Problem("warning", "class differs in case", message, str(dataset.root), where))
        else:
            number = quantity(boxes[label], "box", "boxes")
            message = f"{brief(name)} has {number} and is not in the training split{hint(name, known)}; left out"
            problems.add(Problem("warning", "class not trained", message, str(dataset.root), where))
    return known
