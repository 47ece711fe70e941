"""Figure 4 on your own data: what is counted, what the numbers mean, and the files."""

import csv
import dataclasses
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from focaldet.cli import main
from focaldet.data.dataset import FileSource
from focaldet.data.loading.loader import Loader
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.evaluation import evaluate as evaluation
from focaldet.evaluation.evaluate import EvaluationSetup, match_classes, set_up_evaluation
from focaldet.evaluation.inference import InferenceOptions
from focaldet.models import LossContext
from focaldet.models.base import Margins
from focaldet.runtime import Process
from focaldet.study import imbalance as module
from focaldet.study.imbalance import study_imbalance, summarize_imbalance, tally_losses
from focaldet.study.loss_tally import LossTally
from focaldet.weights import Trained
from tests.evaluation.cases import BrightDetector, make_dataset, make_image

BOX = [8.0, 8.0, 24.0, 40.0]
FILES = {
    "positives.svg",
    "positives.png",
    "negatives.svg",
    "negatives.png",
    "curves.csv",
    "imbalance.json",
    "index.html",
}


class MarginDetector(BrightDetector):
    """Is undecided about every object, and has a hundred negatives an image at x_t = 3."""

    negative = 3.0

    def margins(self, outputs, targets):
        self.targets = [*getattr(self, "targets", []), *targets]
        objects = sum(int((~target.ignored).sum()) for target in targets)
        return Margins(torch.zeros(objects), torch.full((100 * len(targets),), self.negative))


def write_data(folder, images, *, names=("cell", "dog", "cat")):
    """A COCO folder with one split, `val`; each image is a list of the names of its boxes, which all lie at `BOX`."""
    (folder / "images").mkdir(parents=True)
    for index in range(len(images)):
        Image.fromarray(make_image().permute(1, 2, 0).numpy()).save(folder / "images" / f"{index}.png")
    rows = [(index, name) for index, image in enumerate(images) for name in image]
    document = {
        "images": [
            {"id": index, "file_name": f"{index}.png", "height": 48, "width": 64} for index in range(len(images))
        ],
        "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": index, "category_id": 1 + names.index(name), "bbox": [8, 8, 16, 32], "iscrowd": 0}
            for k, (index, name) in enumerate(rows)
        ],
    }
    (folder / "instances_val.json").write_text(json.dumps(document))
    return folder / "instances_val.json"


@pytest.fixture
def detector(monkeypatch):
    """A detector that knows other classes in another order; every weights file is it."""
    one = MarginDetector(names=("dog", "bus", "cell"))
    monkeypatch.setattr(evaluation, "load_detector", lambda spec, **_: Trained(one, (), str(spec)))
    return one


def strict_json(path):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


class TestWhatIsCounted:
    def test_boxes_have_the_labels_of_the_detector_and_unknown_ones_are_ignored(self, detector, tmp_path):
        data = write_data(tmp_path / "data", [["cell", "cat"], ["dog"], []])
        imbalance = study_imbalance("weights", data, out=tmp_path / "out", size=128, device="cpu").imbalance
        first, second, third = detector.targets
        assert first.ignored.tolist() == [False, True]
        assert [first.labels[0], second.labels[0]] == [2, 0]
        assert first.boxes[0].tolist() == [2 * side for side in BOX]  # in the pixels that the network sees
        assert len(third.labels) == 0
        assert (imbalance.num_images, imbalance.num_boxes, imbalance.num_ignored) == (3, 2, 1)
        assert (imbalance.num_positives, imbalance.num_negatives, imbalance.negatives_per_positive) == (2, 300, 150)
        unknown, extra = imbalance.notes
        assert unknown.endswith(": 1 (cat)")
        assert extra.endswith(": bus")

    def test_losses_are_sums_over_all_images(self, detector, tmp_path):
        data = write_data(tmp_path / "data", [["cell"], ["dog"], ["cell"]])
        plain, focal = study_imbalance(
            "weights", data, out=tmp_path / "out", gammas=(0.0, 2.0), batch_size=2, device="cpu"
        ).imbalance.gammas
        assert plain.positive_loss == pytest.approx(3 * 0.6931472)
        assert focal.positive_loss == pytest.approx(3 * 0.6931472 / 4)
        assert plain.negative_loss == pytest.approx(300 * 0.0485874, rel=1e-6)
        assert plain.negatives_over_positives == pytest.approx(plain.negative_loss / plain.positive_loss)
        assert plain.hardest_positives == pytest.approx(0.2)  # all are as hard
        assert focal.hardest_negatives == pytest.approx(0.01)

    def test_processes_share_the_images(self, detector, tmp_path, monkeypatch):
        opened = set_up_evaluation("weights", write_data(tmp_path / "data", [["cell"]] * 5), split="val")
        monkeypatch.setattr(module, "gather_objects", lambda part, *, num_ranks: [part])
        ranks = [Process(rank, 2, torch.device("cpu")) for rank in range(2)]
        calls = []
        parts = [
            tally_losses(
                opened,
                (0.0,),
                options=InferenceOptions(batch_size=2),
                ranks=rank,
                progress=lambda *call: calls.append(call),
            )
            for rank in ranks
        ]
        assert sorted(part.counts.sum(1).tolist() for part in parts) == [[2, 200], [3, 300]]
        assert calls[-1][0] == calls[-1][1]

    def test_the_loss_is_the_one_that_the_detector_trains_on(self, tiny_run, demo_data):
        """α times the sum of the positives and 1 - α times that of the negatives."""
        opened = set_up_evaluation(tiny_run, None, split="val")
        detector = opened.detector.eval()
        # The paper's loss, whose targets are 0 and 1.
        detector.config = detector.config.replace(loss=dataclasses.replace(detector.config.loss, quality=False))
        total = 0.0
        loader = Loader(FileSource(opened.dataset), preprocessing=detector.preprocessing, batch_size=1, seed=0)
        for batch in loader.epoch(0):
            with torch.no_grad():
                outputs = detector(batch.images, batch.sizes)
            num_positives = len(detector.margins(outputs, batch.targets).positive)
            total += detector.losses(outputs, batch.targets, LossContext())["class"].item() * max(1, num_positives)
        tally = tally_losses(opened, (2.0,), options=InferenceOptions(batch_size=1, precision="fp32"))
        positive, negative = tally.losses.sum(2)[0].tolist()
        assert positive > 0
        assert 0.25 * positive + 0.75 * negative == pytest.approx(total, rel=1e-5)


class TestWithoutSomething:
    def test_images_without_boxes_have_no_curve_of_positives(self, detector, tmp_path):
        data = write_data(tmp_path / "data", [[], []])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "positives.png").touch()  # of an earlier call
        imbalance = study_imbalance("weights", data, out=tmp_path / "out", device="cpu").imbalance
        assert "no positives, 200 negatives" in imbalance.meaning[0]
        values = strict_json(tmp_path / "out" / "imbalance.json")
        assert values["negatives_per_positive"] is None
        assert {one["hardest_positives"] for one in values["gammas"]} == {None}
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"positives.svg", "positives.png"}
        assert (tmp_path / "out" / "index.html").read_text().count("<svg") == 1

    def test_no_images_are_refused(self, detector, tmp_path, monkeypatch):
        nothing = EvaluationSetup(
            detector, make_dataset([]), match_classes(("cell",), make_dataset([]).classes, num_classes=1)
        )
        monkeypatch.setattr(module, "set_up_evaluation", lambda *_, **__: nothing)
        with pytest.raises(ConfigError, match="split: 'val' has no images"):
            study_imbalance("weights", out=tmp_path / "out")

    def test_a_detector_without_margins_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluation, "load_detector", lambda spec, **_: Trained(BrightDetector(), (), str(spec)))
        with pytest.raises(ConfigError, match="BrightDetector has no method `margins`"):
            study_imbalance("weights", write_data(tmp_path / "data", [[]]), out=tmp_path / "out", device="cpu")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_broken_detector_is_reported_with_the_images(self, detector, tmp_path, value):
        detector.negative = value
        with pytest.raises(NonFiniteLossError, match=r"logits are NaN or infinite on .*0\.png"):
            study_imbalance("weights", write_data(tmp_path / "data", [[]]), out=tmp_path / "out", device="cpu")

    @pytest.mark.parametrize("gammas", [(), (-1.0,), (1.0, 1.0), (float("nan"),), (float("inf"),)])
    def test_exponents_that_are_none_are_refused(self, gammas):
        with pytest.raises(ConfigError, match="gamma: give one or more different numbers"):
            study_imbalance("weights", gammas=gammas)


def meaning_of(positive, negative, *, gammas=(0.0, 2.0)):
    """The sentences on positives and negatives given as (x_t, count)."""
    tally = LossTally(gammas)
    tally.add(Margins(*(torch.cat([torch.full((count,), x) for x, count in side]) for side in (positive, negative))))
    dataset = make_dataset([[(BOX, 0, 0)]])
    detector = BrightDetector()
    matched = match_classes(detector.class_names, dataset.classes, num_classes=2)
    return " ".join(summarize_imbalance(tally, EvaluationSetup(detector, dataset, matched)).meaning)


class TestWhatItMeans:
    def test_as_in_the_paper(self):
        text = meaning_of([(0.0, 10)], [(3.0, 10_000), (-2.0, 50)])
        assert text.startswith("One decision in 1,006 is about an object: 10 positives, 10,050 negatives.")
        assert "With the cross entropy (γ = 0) the negatives have 85 times the loss of the positives" in text
        assert "with γ = 2 the negatives have 48 times" in text
        assert "few hard" in text

    def test_who_holds_more_may_change_sides(self):
        text = meaning_of([(0.0, 10)], [(4.0, 1000)])
        assert "(γ = 0) the negatives have 2.62 times the loss of the positives" in text
        assert "γ = 2 the positives have 295 times the loss of the negatives" in text

    def test_both_may_hold_the_same(self):
        assert "(γ = 0) both sides have the same loss" in meaning_of([(0.5, 10)], [(0.5, 10)])

    @pytest.mark.parametrize(
        ("negative", "verdict"),
        [
            ([(3.0, 10_000)], "γ changes little"),
            ([(8.0, 10_000), (-5.0, 100)], "there is little for γ to take away"),
            ([(4.0, 10_000), (-5.0, 100)], "comes almost only from the few hard ones"),
            ([(1.0, 10_000), (-5.0, 100)], "the many easy ones still count"),
        ],
    )
    def test_the_verdict_follows_the_numbers(self, negative, verdict):
        assert verdict in meaning_of([(0.0, 1)], negative)

    def test_one_exponent_alone(self):
        text = meaning_of([(0.0, 1)], [(3.0, 100)], gammas=(1.0,))
        assert text.startswith("One decision in 101 is about an object: 1 positive, 100 negatives. With γ = 1 the ")
        assert "have 99.0 % of their loss with γ = 1, the hardest 1 % the rest." in text
        assert "and" not in text.partition("The easy")[2]

    def test_nearly_nothing_is_not_nothing(self):
        assert "< 0.1 % with γ = 2" in meaning_of([(0.0, 1)], [(9.0, 10_000), (-5.0, 100)])


class TestTheCommand:
    def test_it_leaves_everything(self, tiny_run, tmp_path, capsys):
        run = shutil.copytree(tiny_run, tmp_path / "run")
        assert main(["study", "imbalance", str(run), "--device", "cpu", "--batch-size", "3"]) == 0
        out = run / "imbalance-val"
        assert {path.name for path in out.iterdir()} == FILES
        text = capsys.readouterr().out
        assert str(out / "index.html") in text
        values = strict_json(out / "imbalance.json")
        assert all(sentence in text for sentence in values["meaning"])
        assert [one["gamma"] for one in values["gammas"]] == [0, 0.5, 1, 2]
        assert values["num_images"] == 4
        assert values["num_positives"] > 0
        page = (out / "index.html").read_text(encoding="utf-8")
        assert page.count("<svg") == 2
        assert not re.search(r"(src|href)=.?https?:", page)
        assert all(sentence.replace("<", "&lt;").replace(">", "&gt;") in page for sentence in values["meaning"])
        with (out / "curves.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["figure"] for row in rows} == {"positives", "negatives"}
        ends = [float(row["y"]) for row in rows if float(row["x"]) == 1]
        assert ends == [1] * 8

    def test_json_the_exponents_and_another_folder(self, tiny_run, tmp_path, capsys):
        line = ["study", "imbalance", str(tiny_run), "--gamma", "0", "5", "--out", str(tmp_path / "out"), "--json"]
        assert main([*line, "--device", "cpu", "--size", "96"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert [one["gamma"] for one in printed["gammas"]] == [0, 5]
        assert printed == strict_json(tmp_path / "out" / "imbalance.json")
        assert not (tiny_run / "imbalance-val").exists()

    def test_mistakes_are_one_line(self, tiny_run, tmp_path, capsys):
        (tmp_path / "file").touch()
        for more, text in ((["--out", str(tmp_path / "file")], "out:"), (["--gamma", "-1"], "gamma:")):
            assert main(["study", "imbalance", str(tiny_run), *more]) == 2
            error = capsys.readouterr().err
            assert text in error
            assert error.count("\n") == 1
