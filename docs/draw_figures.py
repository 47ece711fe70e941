"""The images of README and docs: the demo's detections on held-out scenes, its hard examples, and figure 1.

make demo && make docs
"""

import argparse
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

import focaldet
from focaldet.study.hard_examples import study_hard
from focaldet.study.loss_curves import study_losses

COLUMNS, ROWS, GAP_PX = 3, 2, 6
SCORE = 0.5
LEAST_DIGITS = 4


def make_sheet(images: list[Image.Image]) -> Image.Image:
    """The images in rows, all of the size of the first."""
    width, height = images[0].size
    size = (COLUMNS * (width + GAP_PX) - GAP_PX, ROWS * (height + GAP_PX) - GAP_PX)
    page = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        page.paste(image, (index % COLUMNS * (width + GAP_PX), index // COLUMNS * (height + GAP_PX)))
    return page


def scenes_with_digits(data: Path) -> list[Path]:
    """The held-out scenes with at least `LEAST_DIGITS` digits, in order; about one scene in ten is empty."""
    truth = json.loads((data / "instances_test.json").read_text())
    digits = Counter(annotation["image_id"] for annotation in truth["annotations"])
    return [data / "images" / one["file_name"] for one in truth["images"] if digits[one["id"]] >= LEAST_DIGITS]


def photograph(page: Path, out: Path) -> None:
    """Write a screenshot of a page in Chromium; nothing without that browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1200, "height": 860})
        view.goto(page.absolute().as_uri(), wait_until="networkidle")
        view.screenshot(path=out, type="jpeg", quality=80)
        browser.close()


def main() -> None:
    """Draw the first held-out scenes with boxes and names, twice their size for legibility."""
    parser = argparse.ArgumentParser(description="Draw docs/detections.jpg from the demo's run.")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "detections.jpg")
    chosen = parser.parse_args()
    predictor = focaldet.load(chosen.run)
    scenes = scenes_with_digits(chosen.run / "data")[: COLUMNS * ROWS]
    drawn = []
    for path in scenes:
        with Image.open(path) as scene:
            image = scene.convert("RGB")
        detections = predictor.predict(image).scale(2, 2)
        large = image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS)
        drawn.append(focaldet.draw.boxes(large, detections, min_score=SCORE))
    make_sheet(drawn).save(chosen.out, quality=85)
    with tempfile.TemporaryDirectory() as folder:
        study_losses(Path(folder))
        shutil.copy(Path(folder) / "focal_loss.svg", chosen.out.parent)
        explorer = study_hard(chosen.run, out=Path(folder) / "hard").page
        photograph(explorer, chosen.out.parent / "hard_examples.jpg")


if __name__ == "__main__":
    main()
