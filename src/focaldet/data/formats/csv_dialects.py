"""The headers of CSV tables of boxes, and what their columns mean.

| written by | columns |
|---|---|
| keras-retinanet, Roboflow's Keras RetinaNet | `path,x1,y1,x2,y2,class`, mostly without a header |
| TensorFlow's tutorials, Roboflow's TensorFlow | `filename,width,height,class,xmin,ymin,xmax,ymax` |
| VoTT | `image,xmin,ymin,xmax,ymax,label` |
| OpenImages | `ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,…`, fractions of the image |
| Label Studio | `image,id,label,…`, where `label` is a JSON list of rectangles in percent |
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from focaldet.data.dataset import CROWD
from focaldet.data.formats.json_files import parse_json
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.text import as_number, brief, plain_numbers
from focaldet.data.problems import Location

Corners = tuple[float, float, float, float]


class TableRow(NamedTuple):
    """One box of a table, or with neither box nor name an image without objects."""

    image: str
    box: Corners | None
    name: str
    location: Location
    flag: int = 0


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """Which field of a row is what.

    `columns` names image, four numbers and class; `where` are their indices. With `sizes` the last two numbers are
    width and height. `scale` divides the numbers into fractions of the image; None for pixels. `json` is the index of a
    column with a list of rectangles, `crowd` that of a flag for groups.
    """

    columns: Sequence[str]
    where: Sequence[int]
    num_fields: int
    sizes: bool = False
    scale: float | None = None
    by_stem: bool = False
    json: int | None = None
    crowd: int | None = None
    unused: Sequence[str] = ()

    def read(self, fields: Sequence[str], location: Location, reading: Reading) -> Iterator[TableRow]:
        """The boxes of one row.

        Raises:
            DataError: the row does not have the fields of the dialect, or one of them is not as it must be.
        """
        if len(fields) != self.num_fields:
            form = ",".join(self.columns) if self is KERAS else f"the {self.num_fields} of the header"
            raise location.error(f"got {len(fields)} fields; must be {form}")
        image = fields[self.where[0]]
        if not image:
            raise location._replace(field=self.columns[0]).error("got ''; must be the name of an image file")
        if self.json is not None:
            yield from self._read_json(image, fields[self.json], location, reading)
            return
        texts = [fields[index] for index in self.where[1:5]]
        name = fields[self.where[5]]
        if not any(texts) and not name:
            yield TableRow(image, None, "", location)
            return
        pairs = zip(texts, self.columns[1:5], strict=True)
        a, b, c, d = (as_number(text, location._replace(field=key)) / (self.scale or 1) for text, key in pairs)
        box = (a, b, a + c, b + d) if self.sizes else (a, b, c, d)
        is_crowd = self.crowd is not None and fields[self.crowd].strip() == "1"
        yield TableRow(image, box, name, location, CROWD if is_crowd else 0)

    def _read_json(self, image: str, text: str, location: Location, reading: Reading) -> Iterator[TableRow]:
        location = location._replace(field="label")
        yield TableRow(image, None, "", location)
        if not text:
            return
        try:
            shapes = parse_json(text)
        except (ValueError, RecursionError):
            raise location.error(f"got {brief(text)}; must be a JSON list of rectangles") from None
        if not isinstance(shapes, list):
            raise location.error(f"got {brief(text)}; must be a JSON list of rectangles")
        for shape in shapes:
            with reading.record():
                yield from _studio_boxes(image, shape, location, reading)


def _studio_boxes(image: str, shape: Any, location: Location, reading: Reading) -> Iterator[TableRow]:
    """The boxes of one of Label Studio's shapes, in percent of the image; one for each of its labels."""
    if not isinstance(shape, dict):
        raise location.error(f"got {brief(shape)}; must be an object with x, y, width, height and rectanglelabels")
    names = shape.get("rectanglelabels") or shape.get("polygonlabels")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        reading.problems.add(location.problem("warning", "shape unused", f"not a rectangle: {brief(shape)}"))
        return
    box = _polygon_in_percent(shape) if "points" in shape else _rectangle_in_percent(shape)
    if box is None:
        raise location.error(f"got {brief(shape)}; must have x, y, width and height in percent")
    if shape.get("rotation"):
        message = f"turned by {brief(shape['rotation'])}°; the box before it is turned is taken"
        reading.problems.add(location.problem("warning", "box turned", message))
    for name in names:
        yield TableRow(image, box, name, location)


def _rectangle_in_percent(shape: dict[str, Any]) -> Corners | None:
    numbers = plain_numbers([shape.get(key) for key in ("x", "y", "width", "height")])
    if numbers is None:
        return None
    x, y, width, height = (number / 100 for number in numbers)
    return x, y, x + width, y + height


def _polygon_in_percent(shape: dict[str, Any]) -> Corners | None:
    points = shape["points"]
    if not isinstance(points, list) or not points or not all(isinstance(p, list) and len(p) == 2 for p in points):
        return None
    numbers = plain_numbers([number for point in points for number in point])
    if numbers is None:
        return None
    xs, ys = ([number / 100 for number in numbers[start::2]] for start in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


KERAS = CsvDialect(("path", "x1", "y1", "x2", "y2", "class"), range(6), 6)

_IMAGE = (
    "path",
    "filename",
    "file_name",
    "file",
    "image",
    "image_path",
    "img_path",
    "image_name",
    "img",
    "imageid",
    "image_id",
    "frame",
)
_CLASS = ("class", "label", "class_name", "name", "category", "labelname", "label_name", "classname")
_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"),
)
_SIDES = (
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("x", "y", "w", "h"),
    ("left", "top", "w", "h"),
    ("xmin", "ymin", "w", "h"),
)


def find_dialect(header: Sequence[str]) -> CsvDialect | None:
    """The dialect of a header; None where the fields are not such a header."""
    names = [field.strip().lower() for field in header]
    image = next((name for name in _IMAGE if name in names), None)
    label = next((name for name in _CLASS if name in names), None)
    if image is None or label is None:
        return None
    if "annotation_id" in names or {"annotator", "lead_time"} & set(names):
        index = names.index(label)
        where = (names.index(image),)
        return CsvDialect((image,), where, len(names), scale=100.0, json=index)
    for kinds, sizes in ((_CORNERS, False), (_SIDES, True)):
        numbers = next((kind for kind in kinds if set(kind) <= set(names)), None)
        if numbers is not None:
            columns = (image, *numbers, label)
            is_openimages = "labelname" in names and image == "imageid"
            used = {*columns, *(("isgroupof",) if is_openimages else ()), "width", "height"}
            return CsvDialect(
                columns,
                [names.index(column) for column in columns],
                len(names),
                sizes=sizes,
                scale=1.0 if is_openimages else None,
                by_stem=is_openimages,
                crowd=names.index("isgroupof") if is_openimages and "isgroupof" in names else None,
                unused=[field for field, name in zip(header, names, strict=True) if name not in used],
            )
    return None
