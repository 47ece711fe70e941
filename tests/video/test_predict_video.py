"""Videos: every frame once, in order and at its time; the drawn video and its lines; what is not a video."""

import json
import shutil
import sys
from fractions import Fraction

import numpy
import pytest
from PIL import Image

from focaldet.cli import main
from focaldet.errors import ConfigError, DataError
from focaldet.prediction import Predictor
from focaldet.video import reading
from focaldet.video.predict_video import predict_video, video_names
from focaldet.video.reading import FrameSource, VideoSource, open_source, turn_upright
from focaldet.video.writing import VideoWriter
from focaldet.weights.thresholds import ScoreThreshold, ScoreThresholds
from tests.evaluation.cases import BrightDetector, make_image

av = pytest.importorskip("av", exc_type=ImportError)
NUM_FRAMES, SIZE = 12, (48, 64)


def predictor():
    return Predictor(BrightDetector(), device="cpu", precision="fp32")


def frame_image(index):
    """A red rectangle that moves two pixels to the right a frame."""
    return make_image(SIZE, box=(4 + 2 * index, 8, 20 + 2 * index, 40))


def write_video(path, images, *, rate=10, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "5"} if codec == "libx264" else {})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for image in images:
            array = numpy.ascontiguousarray(image.permute(1, 2, 0).numpy())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "moving.mp4", map(frame_image, range(NUM_FRAMES)))


def test_a_frame_has_the_limit_of_an_image(video, tmp_path, monkeypatch):
    monkeypatch.setenv("FOCALDET_MAX_MEGAPIXELS", "0.001")
    with pytest.raises(DataError, match=r"moving\.mp4.*a frame has 0\.00307 megapixels, allowed are 0\.001"):
        predict_video(predictor(), video, tmp_path / "out")


def lines_of(result):
    return [json.loads(line) for line in result.lines.read_text().splitlines()]


def times_of(path):
    with av.open(str(path)) as container:
        return [round(float(frame.time), 3) for frame in container.decode(video=0)]


def test_a_video_gives_a_line_and_a_frame_for_each_frame(video, tmp_path):
    seen = []
    result = predict_video(predictor(), video, tmp_path / "out", progress=lambda *counts: seen.append(counts))
    rows = lines_of(result)
    assert (result.num_frames, result.num_detections, result.num_tracks, result.num_damaged) == (
        NUM_FRAMES,
        12,
        None,
        0,
    )
    assert [row["frame"] for row in rows] == [*range(NUM_FRAMES)]
    assert [row["seconds"] for row in rows] == pytest.approx([index / 10 for index in range(NUM_FRAMES)])
    assert {*rows[0]} == {"frame", "seconds", "width", "height", "boxes", "scores", "labels", "names"}
    assert (rows[0]["width"], rows[0]["height"], rows[0]["names"]) == (64, 48, ["cell"])
    for index, row in enumerate(rows):
        assert row["boxes"][0] == pytest.approx([4 + 2 * index, 8, 20 + 2 * index, 40], abs=1.5)
    assert seen[-1] == (NUM_FRAMES, NUM_FRAMES)
    assert result.video == tmp_path / "out" / "moving.mp4"
    assert times_of(result.video) == pytest.approx([index / 10 for index in range(NUM_FRAMES)], abs=0.002)


def test_detections_are_those_of_predict_on_the_decoded_frames(video, tmp_path):
    result = predict_video(predictor(), video, tmp_path, drawn=False)
    frames = [frame.pixels for frame in open_source(str(video)).frames()]
    assert [row["boxes"] for row in lines_of(result)] == [each.boxes.tolist() for each in predictor().predict(frames)]
    assert result.video is None
    assert [file.name for file in tmp_path.iterdir()] == ["moving.jsonl"]


def test_the_drawn_video_has_the_boxes(video, tmp_path):
    result = predict_video(predictor(), video, tmp_path)
    with av.open(str(result.video)) as container:
        drawn = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    plain = next(open_source(str(video)).frames()).pixels.astype(int)
    changed = numpy.abs(drawn - plain).sum(2) > 100
    assert changed[24, 4]  # the left side of the box
    assert not changed[24, 40:].any()


def test_every_third_frame_keeps_its_time(video, tmp_path):
    seen = []
    result = predict_video(predictor(), video, tmp_path, every=3, progress=lambda *counts: seen.append(counts))
    assert [row["frame"] for row in lines_of(result)] == [0, 3, 6, 9]
    assert times_of(result.video) == pytest.approx([0, 0.3, 0.6, 0.9], abs=0.002)
    assert seen[-1] == (4, 4)


def test_tracks_are_written_and_counted(video, tmp_path):
    result = predict_video(predictor(), video, tmp_path, track=True, every=2)
    assert result.num_tracks == 1
    assert [row["tracks"] for row in lines_of(result)] == [[1]] * 6


def test_tracks_begin_at_the_scores_that_the_weights_keep(tmp_path):
    """As detections do without tracks, and the note says so; those below them only continue."""
    overall, cell = (ScoreThreshold(name, score, 0.9, 0.9, 0.9, 50) for name, score in ((None, 0.52), ("cell", 0.9)))
    kept = ScoreThresholds(overall, (cell,))
    for index, red in enumerate((220, 250, 220)):  # scores of .86, .98 and .86
        Image.fromarray(make_image(red=red).permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    tracking = Predictor(BrightDetector(), device="cpu", precision="fp32", thresholds=kept)
    result = predict_video(tracking, tmp_path, tmp_path / "out", track=True, drawn=False)
    assert [row["tracks"] for row in lines_of(result)] == [[], [1], [1]]
    assert ["0.90 (cell)" in note for note in result.notes] == [True]


def test_a_track_outlasts_as_many_of_the_frames_that_are_looked_at(tmp_path):
    """With every fourth frame, an object that is hidden in ten of them is 44 frames away and still the same."""
    for index in range(48):
        Image.fromarray(make_image(red=0 if 0 < index < 44 else 255).permute(1, 2, 0).numpy()).save(
            tmp_path / f"{index}.png"
        )
    result = predict_video(predictor(), tmp_path, tmp_path / "out", track=True, every=4, drawn=False)
    assert (result.num_frames, result.num_tracks) == (12, 1)


def test_few_frames_are_held(tmp_path, monkeypatch):
    for index in range(60):
        Image.fromarray(frame_image(index % 12).permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    taken, frames = [], FrameSource.frames

    def note(self, **settings):
        for frame in frames(self, **settings):
            taken.append(frame)
            yield frame

    monkeypatch.setattr(FrameSource, "frames", note)
    seen = []
    predict_video(predictor(), tmp_path, tmp_path / "out", batch_size=4, progress=lambda *_: seen.append(len(taken)))
    assert max(begun - done for done, begun in enumerate(seen)) <= 10


def test_videos_of_one_name_have_files_of_their_own(video, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(video, tmp_path / folder / "clip.mp4")
    sources = [str(tmp_path / folder / "clip.mp4") for folder in ("a", "b")]
    names = video_names([*sources, "camera:0", str(tmp_path)])
    assert names == ["a_clip", "b_clip", "camera_0", tmp_path.name]
    for source, name in zip(sources, names, strict=False):
        predict_video(predictor(), source, tmp_path / "out", drawn=False, name=name)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a_clip.jsonl", "b_clip.jsonl"]


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in (0, 1, 2, 10, 9):
        Image.fromarray(frame_image(index).permute(1, 2, 0).numpy()).save(folder / f"frame_{index}.png")
    (folder / "frame_3.png").write_bytes(b"<html>")
    (folder / "._frame_0.png").write_bytes(b"what macOS leaves beside files")
    result = predict_video(predictor(), folder, tmp_path / "out", fps=5.0)
    rows = lines_of(result)
    assert [row["boxes"][0][0] for row in rows] == [4, 6, 8, 22, 24]
    assert [row["frame"] for row in rows] == [0, 1, 2, 4, 5]
    assert [row["seconds"] for row in rows] == [0, 0.2, 0.4, 0.8, 1.0]
    assert (result.num_damaged, result.video.name) == (1, "frames.mp4")


def test_odd_sides_lose_their_last_row_in_the_drawn_video_alone(tmp_path):
    Image.fromarray(make_image((49, 65)).permute(1, 2, 0).numpy()).save(tmp_path / "1.png")
    result = predict_video(predictor(), tmp_path, tmp_path / "out")
    assert (lines_of(result)[0]["width"], lines_of(result)[0]["height"]) == (65, 49)
    with av.open(str(result.video)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 48)


def test_a_damaged_video_gives_what_can_be_read(video, tmp_path):
    """A packet of 0xFF, which has no length that fits: it is counted, and the frames keep their numbers."""
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    start, size = spans[NUM_FRAMES // 2]
    data[start : start + size] = b"\xff" * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    result = predict_video(predictor(), broken, tmp_path / "out")
    rows = lines_of(result)
    assert (result.num_damaged, result.num_frames, len(rows)) == (1, NUM_FRAMES - 1, NUM_FRAMES - 1)
    assert [row["frame"] for row in rows] == [round(10 * row["seconds"]) for row in rows]
    assert rows[-1]["frame"] == NUM_FRAMES - 1


def lose(monkeypatch, *, damaged, lost):
    """A decoder that meets a damaged packet before each of these frames, and never gives others."""
    decode = VideoSource._decode

    def give_others(self):
        for number, frame in enumerate(decode(self)):
            self.num_damaged += number in damaged
            if number not in lost:
                yield frame

    monkeypatch.setattr(VideoSource, "_decode", give_others)


@pytest.mark.parametrize("damaged", [(2, 6), (0, 3)])
def test_frames_behind_damaged_packets_keep_their_numbers(video, tmp_path, monkeypatch, damaged):
    """Three frames are lost by two packets, at once or, as decoders hold frames back, some frames later."""
    lose(monkeypatch, damaged=damaged, lost=(2, 6, 7))
    rows = lines_of(predict_video(predictor(), video, tmp_path, drawn=False))
    assert [row["frame"] for row in rows] == [0, 1, 3, 4, 5, 8, 9, 10, 11]
    assert [row["seconds"] for row in rows] == pytest.approx([row["frame"] / 10 for row in rows])
    rows = lines_of(predict_video(predictor(), video, tmp_path, drawn=False, every=4))
    assert [row["frame"] for row in rows] == [0, 4, 8]


@pytest.mark.parametrize("lost", [(3,), ()])
def test_a_rate_that_varies_is_no_damage(tmp_path, monkeypatch, lost):
    """Only the gap behind a damaged packet is of lost frames; a camera that made a break is none, long after it too."""
    seconds = [index / 10 for index in range(60)] + [6.7, 6.8, 7.6]
    writer = VideoWriter(tmp_path / "varying.mp4", fps=10)
    for index, second in enumerate(seconds):
        writer.add(Image.fromarray(frame_image(index % 12).permute(1, 2, 0).numpy()), seconds=second)
    writer.close()
    lose(monkeypatch, damaged=(3,), lost=lost)
    rows = lines_of(predict_video(predictor(), tmp_path / "varying.mp4", tmp_path / "out", drawn=False))
    assert [row["frame"] for row in rows] == [index for index in range(63) if index not in lost]
    assert rows[-1]["seconds"] == pytest.approx(7.6, abs=0.001)


def test_a_video_of_one_frame_of_a_million_is_written(video, tmp_path):
    result = predict_video(predictor(), video, tmp_path, every=1_000_000)
    assert (result.num_frames, times_of(result.video)) == (1, [0])


def test_several_processes_do_not_write_one_video(video, tmp_path, monkeypatch):
    monkeypatch.setattr("focaldet.video.predict_video.num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="a video is written by one process; start it without torchrun"):
        predict_video(predictor(), video, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", None, "no such file"),
        ("a.mp4", b"", "cannot be read as a video"),
        ("a.mp4", b"<html>" * 99, "cannot be read as a video"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "cannot be read as a video"),
        ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read as a video"),
    ],
)
def test_what_is_not_a_video_is_refused_by_name(tmp_path, name, content, message):
    """Among them lists that name other files and addresses, which FFmpeg would follow."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        predict_video(predictor(), tmp_path / name, tmp_path / "out")
    assert caught.value.file == str(tmp_path / name)


def test_a_camera_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="camera:99: cannot be read"):
        predict_video(predictor(), "camera:99", tmp_path)


@pytest.fixture
def camera(video, tmp_path, monkeypatch):
    """A video that stands where the third camera would be."""
    shutil.copy(video, tmp_path / "video3")
    monkeypatch.setitem(reading._CAMERAS, sys.platform, ("mp4", f"{tmp_path}/video{{}}"))
    return "camera:3"


def test_a_camera_is_looked_at_frame_by_frame_until_it_is_interrupted(camera, tmp_path):
    """Then the command has done what it was asked for: no error, and both files are whole."""
    seen, sizes = [], []
    detector = predictor()
    stream = detector.predict_stream
    detector.predict_stream = lambda frames, **settings: (
        sizes.append(settings["batch_size"]) or stream(frames, **settings)
    )

    def interrupt(done, total):
        seen.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    result = predict_video(detector, camera, tmp_path / "out", batch_size=8, track=True, progress=interrupt)
    assert (result.num_frames, result.num_tracks, result.video.name) == (5, 1, "camera_3.mp4")
    assert (sizes, seen[-1]) == ([1], (5, None))
    assert [row["frame"] for row in lines_of(result)] == [0, 1, 2, 3, 4]
    assert len(times_of(result.video)) == 5


def test_settings_out_of_range_are_refused(video, tmp_path):
    for settings, message in (({"every": 0}, "every"), ({"fps": -1.0}, "fps"), ({"score": 2.0}, "score")):
        with pytest.raises(ConfigError, match=message):
            predict_video(predictor(), video, tmp_path, **settings)
    with pytest.raises(ConfigError, match="would replace"):
        predict_video(predictor(), video, video.parent)


def test_an_interrupt_leaves_a_video_that_plays(video, tmp_path):
    def interrupt(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_video(predictor(), video, tmp_path, progress=interrupt)
    assert len(times_of(tmp_path / "moving.mp4")) == 5
    assert len((tmp_path / "moving.jsonl").read_text().splitlines()) == 5


def test_a_turned_video_is_turned_upright():
    """A phone that was held upright writes -90: a player turns the frame clockwise."""
    pixels = numpy.arange(6, dtype=numpy.uint8).reshape(1, 2, 3)
    assert turn_upright(pixels, 0) is pixels
    assert turn_upright(pixels, -90).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert turn_upright(pixels, 90).tolist() == [[[3, 4, 5]], [[0, 1, 2]]]
    assert turn_upright(pixels, 180).tolist() == [[[3, 4, 5], [0, 1, 2]]]


def test_the_rate_of_television_is_kept(tmp_path):
    path = write_video(tmp_path / "tv.mp4", [frame_image(index) for index in range(3)], rate=Fraction(30000, 1001))
    result = predict_video(predictor(), path, tmp_path / "out")
    with av.open(str(result.video)) as container:
        assert [round(frame.time * 30000 / 1001, 2) for frame in container.decode(video=0)] == [0, 1, 2]


def test_the_command_line(video, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("focaldet.cli.predict.load", lambda *_, **__: predictor())
    out = tmp_path / "out"
    assert main(["predict", "RUN", str(video), "--out", str(out), "--track", "--every", "4"]) == 0
    assert "3 frames, 3 detections, 1 track; look at" in capsys.readouterr().out
    for words, message in (
        ([str(video), "a.jpg"], "a call of their own"),
        ([str(video), "--formats", "coco"], "a call of their own"),
        (["a.jpg", "--track"], "--every, --track and --fps are for videos, cameras and folders; a.jpg is none"),
        (["nowhere.mp4"], "nowhere.mp4: no such file"),
    ):
        assert main(["predict", "RUN", *words, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_without_the_package_it_is_named(video, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'focaldet\[video\]'"):
        predict_video(predictor(), video, tmp_path)
