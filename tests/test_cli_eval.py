"""What `focaldet eval` leaves in a folder, and where its notes go."""

import json
import shutil

import pytest

from focaldet.cli import main
from focaldet.outputs import begin_call, earlier_call


@pytest.fixture
def results(demo_data, tmp_path):
    """A result file of perfect detections, and the flags that name the images."""
    truth = json.loads((demo_data / "instances_test.json").read_text())
    names = ("image_id", "category_id", "bbox")
    rows = [{name: row[name] for name in names} | {"score": 0.9} for row in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    return tmp_path / "results.json", ["--data", str(demo_data / "instances_test.json")]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_beside_json_the_notes_are_on_stderr(tiny_run, tmp_path, capsys):
    line = ["eval", str(tiny_run), "--json", "--out", str(tmp_path / "e")]
    assert main(line) == 0
    assert "replaces" not in capsys.readouterr().err
    assert main(line) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["num_images"] == 4
    assert f"note: replaces the 2 files of an earlier eval in {tmp_path / 'e'}\n" in output.err


class TestAResultFileInAFolderOfOthers:
    @pytest.fixture
    def folder(self, tiny_run, tmp_path, capsys):
        """The folder of an evaluation."""
        assert main(["eval", str(tiny_run), "--out", str(tmp_path / "e")]) == 0
        capsys.readouterr()
        return tmp_path / "e"

    def test_the_detections_of_an_evaluation_are_neither_removed_nor_mixed_with_it(self, folder, results, capsys):
        file, data = results
        before = contents(folder)
        assert {"predictions.json", "metrics.json", "report.html"} <= set(before)
        assert main(["eval", "--predictions", str(file), *data, "--out", str(folder)]) == 2
        assert f"out: {folder / 'predictions.json'} has other detections" in capsys.readouterr().err
        assert contents(folder) == before

    def test_its_own_detections_stay_and_its_page_goes_with_its_metrics(self, folder, results, capsys):
        before, page = contents(folder), folder / "report.html"
        line = ["eval", "--predictions", str(folder / "predictions.json"), *results[1], "--out", str(folder)]
        assert main([*line, "--max-detections", "300"]) == 0
        output = capsys.readouterr().out
        assert "note: replaces the file of an earlier eval" in output
        assert f"note: removed {page}, which showed other metrics" in output
        assert (folder / "predictions.json").read_bytes() == before["predictions.json"] and not page.exists()
        assert json.loads((folder / "metrics.json").read_text())["max_detections"] == 300

    def test_the_page_of_a_run_stays(self, folder, results, capsys):
        (folder / "config.yaml").write_text("model: m\n")
        line = ["eval", "--predictions", str(folder / "predictions.json"), *results[1], "--out", str(folder)]
        assert main(line) == 0
        assert (folder / "report.html").is_file()
        capsys.readouterr()

    def test_files_of_another_command_stay_and_are_known_to_the_next(self, results, tmp_path, capsys):
        file, data = results
        folder = tmp_path / "drawn"
        folder.mkdir()
        begin_call(folder, "predict", ["a.jpg", "labels/a.txt", "predictions.json"])
        (folder / "labels").mkdir()
        for name in ("a.jpg", "labels/a.txt", "report.html"):
            (folder / name).write_text("")
        shutil.copy(file, folder / "predictions.json")
        assert main(["eval", "--predictions", str(folder / "predictions.json"), *data, "--out", str(folder)]) == 0
        assert "note:" not in capsys.readouterr().out
        known = {path.relative_to(folder).as_posix() for path in earlier_call(folder).files}
        assert known == {"a.jpg", "labels/a.txt", "predictions.json", "metrics.json"}
        assert (folder / "report.html").is_file()
