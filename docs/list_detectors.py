"""Write what `focaldet models` prints, of the detectors as they are built, into src/focaldet/cli/detectors.json."""

from dataclasses import asdict
from pathlib import Path

from focaldet.files import write_json
from focaldet.models.published import detector_rows


def main() -> None:
    file = Path(__file__).resolve().parent.parent / "src" / "focaldet" / "cli" / "detectors.json"
    write_json(file, [asdict(row) for row in detector_rows()])
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
