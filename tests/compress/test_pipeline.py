import pytest

from compress.pipeline import Record, StageResult, plot_stages, read_record, reason_to_leave_out

KEPT = StageResult("extract", None, "extract", "model.onnx", 0.9, 0.01, None, None, 4000, 2.0)
LEFT = StageResult("prune", "slower", "prune", "model.onnx", 0.8, 0.01, 10.0, 0.5, 3000, 2.5, 1.25, 0.01, "slower")


@pytest.mark.parametrize(
    ("verdict", "must_be_faster", "reason"),
    [
        ("faster", True, None),
        ("not distinguishable", False, None),
        ("not distinguishable", True, "not measurably faster: 0.990 of the time, give or take 0.020"),
        ("slower", False, "slower: 0.990 of the time, give or take 0.020"),
        (None, True, None),
    ],
)
def test_a_stage_is_left_out_by_the_measured_time(verdict, must_be_faster, reason):
    result = StageResult("prune", time_ratio=0.99, time_ratio_error=0.02, verdict=verdict)
    assert reason_to_leave_out(result, must_be_faster) == reason


def test_a_record_goes_on_from_the_last_network_that_stays(tmp_path):
    record = Record({"seed": 0}, {"name": "here"}).with_stage(KEPT).with_stage(LEFT)
    assert record.last is KEPT
    assert (record.of("prune"), record.of("store")) == (LEFT, None)
    record.write(tmp_path / "pipeline.json")
    assert read_record(tmp_path / "pipeline.json") == record


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "stages": [{"x": 1}]}', '{"format": 9}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "pipeline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"pipeline\.json is"):
        read_record(path)


def test_the_picture_shows_what_was_left_out(tmp_path):
    plot_stages(tmp_path / "all.svg", [KEPT, LEFT, StageResult("quantise", "no way")])
    assert "hatched: left out" in (tmp_path / "all.svg").read_text()
    plot_stages(tmp_path / "kept.svg", [KEPT])
    assert "hatched" not in (tmp_path / "kept.svg").read_text()
