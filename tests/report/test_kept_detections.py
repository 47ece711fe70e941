"""Which images the detections of a run are shown on: those that they are of, and no others."""

import json
import re

import pytest

from focaldet.data.config import DataConfig
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.diagnostics import score_images
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.evaluator import ground_truth_of
from focaldet.evaluation.results import result_rows, write_results
from focaldet.report.kept_detections import open_kept_detections
from focaldet.report.monitor import PAGE, RunMonitor
from focaldet.report.report_runs import report_runs
from tests.evaluation.cases import make_dataset, make_detections
from tests.report.runs import evaluate_run, make_run, write_coco


@pytest.fixture
def others(tmp_path):
    """Images of the same numbers with other boxes."""
    folder = write_coco(tmp_path / "others", "train", range(11, 13))
    return write_coco(folder, "val", range(1, 11), box=(30, 8, 20, 20))


@pytest.fixture
def file(tmp_path):
    """Twenty images in one file, of which training holds out two."""
    return write_coco(tmp_path / "single", "all", range(1, 21)) / "instances_all.json"


def text_of(page):
    return re.sub('base64,[^"]*', "", page.read_text())


class TestDataWithoutASplitForValidation:
    def test_the_detections_of_a_training_are_scored_on_the_tenth_that_it_held_out(self, file, tmp_path):
        run = make_run(tmp_path / "run", file, seed=3)
        page = text_of(report_runs([run]))
        assert "2 images, 2 boxes" in page and '<p class="value">100.0</p>' in page
        assert '<th scope="row" class="text">all</th><td>18</td>' in page  # what it was trained on

    def test_the_monitor_does_so_too(self, file, tmp_path):
        run = make_run(tmp_path / "run", file, seed=3)
        RunMonitor(run).write_page(seconds=1.0)
        assert "2 images, 2 boxes" in (run / PAGE).read_text()

    def test_the_detections_of_an_evaluation_are_scored_on_the_whole_file(self, file, tmp_path):
        run = make_run(tmp_path / "run", file)
        evaluate_run(run, file, "eval-val")
        assert "20 images, 20 boxes" in text_of(report_runs([run]))

    @pytest.mark.parametrize("is_named", [False, True])
    def test_another_seed_may_divide_the_data(self, file, tmp_path, is_named):
        """As in a comparison, whose runs all leave out the same images, whether the data are named or not."""
        run = make_run(tmp_path / "run", file, seed=3)
        (run / "config.yaml").write_text(f"model: m\nseed: 4\ndata: {{path: {file}, split_seed: 3}}\n")
        page = text_of(report_runs([run], file if is_named else None))
        assert "2 images, 2 boxes" in page and '<p class="value">100.0</p>' in page

    def test_runs_with_other_seeds_have_other_images(self, file, tmp_path):
        runs = [make_run(tmp_path / f"run{seed}", file, seed=seed) for seed in (0, 1)]
        with pytest.raises(DataError, match=r"run1 are of other images .* than those of .*run0"):
            report_runs(runs)

    def test_a_run_that_overfits_was_scored_on_its_training_images(self, data, tmp_path):
        run = make_run(tmp_path / "run", data, settings="overfit: 1\n")
        kept = open_kept_detections(run, split="val")
        assert (kept.dataset.name, kept.dataset.image_ids.tolist()) == ("overfit", [11])


class TestOtherData:
    def test_a_run_on_other_data_is_not_put_beside(self, data, others, tmp_path):
        runs = [make_run(tmp_path / "a", data), make_run(tmp_path / "b", others)]
        with pytest.raises(DataError, match=f"{tmp_path / 'b'} are of other images .*others.* than those of .*data"):
            report_runs(runs)

    @pytest.mark.parametrize("fingerprints", [True, False])
    def test_runs_of_versions_without_fingerprints_are_told_apart_by_their_data(
        self, data, others, tmp_path, fingerprints
    ):
        first = make_run(tmp_path / "a", data, fingerprints=fingerprints)
        with pytest.raises(DataError, match="are of other images"):
            report_runs([first, make_run(tmp_path / "b", others, fingerprints=False)])
        assert report_runs([first, make_run(tmp_path / "c", data, fingerprints=False)]).is_file()

    def test_named_data_that_the_detections_are_not_of_are_refused(self, data, others, tmp_path):
        run = make_run(tmp_path / "run", data)
        with pytest.raises(DataError, match=f'detections of {run} are not of these data, "val" in {others}'):
            report_runs([run], others)
        assert "100.0" in text_of(report_runs([run], data))

    def test_data_that_have_changed_since_are_refused(self, data, tmp_path):
        run = make_run(tmp_path / "run", data)
        text = (data / "instances_val.json").read_text().replace("[8, 8, 16, 32]", "[8, 8, 16, 31]", 1)
        (data / "instances_val.json").write_text(text)
        with pytest.raises(DataError, match="or their annotations have changed since"):
            report_runs([run])

    def test_an_evaluation_of_other_data_is_taken_where_these_are_named(self, data, others, tmp_path):
        run = make_run(tmp_path / "run", data, shift=5)
        evaluate_run(run, others, "eval-others-val")
        assert open_kept_detections(run, others, split="val").path == run / "eval-others-val" / "predictions.json"

    def test_an_evaluation_that_says_it_is_of_other_data_is_refused(self, data, others, tmp_path):
        run = make_run(tmp_path / "run", data)
        evaluate_run(run, others, "eval-val")
        with pytest.raises(DataError, match="are not of these data"):
            report_runs([run])
        (run / "eval-val" / "metrics.json").unlink()  # of a version that wrote no fingerprint
        assert report_runs([run]).is_file()

    def test_data_without_detections_are_named_with_the_way_to_get_them(self, data, tmp_path):
        write_coco(data, "test", range(21, 24))
        run = make_run(tmp_path / "run", data)
        with pytest.raises(ConfigError, match=f"no detections on test of these data: .*--data {data} --split test"):
            report_runs([run], data, split="test")

    def test_the_monitor_says_that_data_are_not_those_of_the_run(self, data, tmp_path):
        run = make_run(tmp_path / "run", data)
        (run / "environment.json").write_text(json.dumps({"data": {"validation": "0"}}))
        RunMonitor(run).write_page(seconds=1.0)
        assert "are not of these data" in (run / PAGE).read_text()


@pytest.mark.parametrize("settings", ["seed: x", "seed: 0\noverfit: -1"])
def test_settings_that_are_no_numbers_are_named(data, tmp_path, settings):
    run = make_run(tmp_path / "run", data)
    (run / "config.yaml").write_text(f"data: {{path: {data}}}\n{settings}\n")
    with pytest.raises(ConfigError, match="must be a whole number"):
        report_runs([run])


class TestTheLimitOfDetections:
    def crowd(self, num_boxes=150):
        """One image with so many boxes, all detected."""
        rows = [([4 * k, 0, 4 * k + 3, 9], 0, 0) for k in range(num_boxes)]
        dataset = make_dataset([rows], sizes=[(10, 1000)])
        return dataset, {0: make_detections(*((box, 0.9, label) for box, label, _ in rows))}

    def test_an_image_is_scored_with_that_of_the_evaluation(self):
        dataset, detections = self.crowd()
        truth, rows = ground_truth_of(dataset), result_rows(detections)
        for limit, missed in ((100, 50), (200, 0)):
            (score,) = score_images(truth, rows, score=0.5, max_detections=limit)
            assert (score.right, score.wrong, score.missed) == (150 - missed, 0, missed)

    def test_a_page_of_several_runs_has_the_numbers_of_the_evaluation(self, data, tmp_path):
        runs = [make_run(tmp_path / name, data) for name in "ab"]
        for run in runs:
            evaluate_run(run, data, "eval-val", max_detections=300)
        assert "<th>AR300</th>" in text_of(report_runs(runs))

    def test_different_limits_are_refused(self, data, tmp_path):
        runs = [make_run(tmp_path / name, data) for name in "ab"]
        evaluate_run(runs[1], data, "eval-val", max_detections=300)
        with pytest.raises(ConfigError, match=r"a was evaluated with at most 100 .*b with 300: say focaldet eval"):
            report_runs(runs)


def test_of_two_sets_with_the_same_images_the_other_may_be_opened(data, tmp_path):
    """A split for validation that was copied alone is the one that training validated on."""
    run = make_run(tmp_path / "run", data)
    alone = DataConfig(path=data / "instances_val.json", images=data / "val")
    dataset = open_evaluation_split(alone, "val", seed=0)
    write_results(run / "predictions.json", dataset, {})
    assert open_kept_detections(run, alone, split="val").path.parent == run
