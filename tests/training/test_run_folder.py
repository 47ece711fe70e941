"""The run folder: when it may be used, and which run may be resumed in it."""

import dataclasses
import json

import pytest

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder, check_identity, identity, open_folder, source_commit
from tests.training.squares import small_run

PRINTS = {"train": "aaa", "validation": "bbb"}


def test_new_and_empty_folders_are_taken(tmp_path):
    assert open_folder(small_run(tmp_path / "new")).path == tmp_path / "new"
    assert not (tmp_path / "new").exists(), "looking changes nothing"
    assert open_folder(small_run(tmp_path)).path == tmp_path


def test_a_run_is_neither_overwritten_nor_mixed_by_accident(tmp_path):
    RunFolder(tmp_path).create(small_run(tmp_path))
    with pytest.raises(ConfigError, match="already exists; continue it with --resume, or replace it with --overwrite"):
        open_folder(small_run(tmp_path))
    open_folder(small_run(tmp_path, resume=True))
    open_folder(small_run(tmp_path, overwrite=True))


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError):
            open_folder(small_run(tmp_path, **changes))
    with pytest.raises(ConfigError, match="is a file"):
        open_folder(small_run(tmp_path / "thesis.tex"))


def test_a_path_that_can_be_no_folder_is_refused_at_the_door(tmp_path):
    (tmp_path / "file").touch()
    for changes in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=r"out: .*/file is a file, not a folder"):
            open_folder(small_run(tmp_path / "file" / "deep" / "run", **changes))
    with pytest.raises(ConfigError, match=r"out: .*x: cannot be looked into: File name too long"):
        open_folder(small_run(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("changes", [{}, {"overwrite": True}])
def test_a_file_that_came_in_the_way_is_reported(tmp_path, changes):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"out: .*: no folder can be made there"):
            RunFolder(out).create(small_run(out, **changes))


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="no run to resume there"):
        open_folder(small_run(tmp_path / "missing", resume=True))
    (tmp_path / ".config.yaml.partial").write_text("half of")
    assert open_folder(small_run(tmp_path, resume=True)), "killed before anything else was there: begins again"
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match="no run to resume there"):
        open_folder(small_run(tmp_path, resume=True))


def test_overwriting_removes_only_what_runs_leave(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(small_run(tmp_path))
    for file in (folder.metrics, folder.best, folder.state, tmp_path / "notes.txt"):
        file.write_text("old")
    folder.create(small_run(tmp_path, overwrite=True))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["config.yaml", "notes.txt"]
    kept = configs.from_dict(RunConfig, configs.read_mapping(folder.config))
    assert not kept.overwrite and not kept.resume, "the file says how to repeat the run, not how it was started"


def compare(then, now, prints=PRINTS):
    check_identity(
        identity(now, fingerprints=prints), json.loads(json.dumps(identity(then, fingerprints=PRINTS))), folder=now.out
    )


def test_the_same_run_goes_on_elsewhere(tmp_path):
    config = small_run(tmp_path)
    compare(config, dataclasses.replace(config, out=tmp_path / "moved", resume=True, workers=4, threads=2, log_every=9))


def test_changed_settings_are_named(tmp_path):
    config = small_run(tmp_path)
    changed = dataclasses.replace(
        config, learning_rate=0.5, architecture={**config.architecture, "anchors": {"base_scale": 3.0}}
    )
    with pytest.raises(
        CheckpointError, match=r"anchors\.base_scale was 2\.0, is 3\.0; learning_rate was 0\.001, is 0\.5"
    ):
        compare(config, changed)


def test_changed_data_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="the validation data changed"):
        compare(small_run(tmp_path), small_run(tmp_path), prints={"train": "aaa", "validation": "ccc"})


def test_only_a_constant_run_can_be_made_longer(tmp_path):
    for schedule in ("one_cycle", "cosine", "step"):
        with pytest.raises(CheckpointError, match="epochs was 2, is 9"):
            compare(small_run(tmp_path, schedule=schedule), small_run(tmp_path, schedule=schedule, epochs=9))
    compare(small_run(tmp_path, schedule="constant"), small_run(tmp_path, schedule="constant", epochs=9))
    ended = {"schedule": "constant", "multi_scale": (32, 64), "multi_scale_end": 0.1}
    compare(small_run(tmp_path, **ended), small_run(tmp_path, **ended))
    with pytest.raises(CheckpointError, match="epochs was 2, is 9"):
        compare(small_run(tmp_path, **ended), small_run(tmp_path, **ended, epochs=9))
    with pytest.raises(CheckpointError, match="epochs was 2, is 1"):
        compare(small_run(tmp_path, schedule="constant"), small_run(tmp_path, schedule="constant", epochs=1))


def test_commit_is_read_without_git():
    commit = source_commit()
    assert commit is None or (len(commit) == 40 and int(commit, 16))
