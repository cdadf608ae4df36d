import base64
import io
import json

import pytest
import torch
from PIL import Image

from search.certainty import wilson
from search.history import Evaluation, write_history
from search.report.answered import (
    CONFUSIONS,
    DRAWN,
    ERRORS,
    MOST_BYTES,
    PIXELS,
    answered,
    answers_content,
    read_answered,
    within_bytes,
    write_answered,
)
from search.report.sources import read_sources
from search.report.taken_out import note_taken_out
from supernet.answers.answers import Answers
from supernet.space import Arch

CLASSES = ("cat", "dog", "cow")
ARCH = Arch({"width": 8})
SAMPLE = {"image": "", "name": "", "label": 0, "classes": [0], "probabilities": [1.0], "drawn": True}


class Images(torch.utils.data.Dataset):
    """Noise of 300 x 200 pixels, which is as many bytes as a thumbnail may take."""

    def __init__(self):
        self.names = [f"{index}.png" for index in range(40)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        pixels = torch.randint(0, 256, (200, 300, 3), generator=torch.Generator().manual_seed(index))
        return Image.fromarray(pixels.to(torch.uint8).numpy()), 0


@pytest.fixture
def answers():
    """Of 40 images, the first ten are cats of which three are taken for dogs, the others are dogs, all known."""
    labels = torch.tensor([0] * 10 + [1] * 30)
    best = torch.where(torch.arange(40) < 3, 1, labels)
    sure = torch.linspace(0.5, 0.9, 40, dtype=torch.float64)
    others = torch.stack([(best + 1) % 3, (best + 2) % 3], 1)
    classes = torch.cat([best[:, None], others], 1)
    return Answers(labels, classes, torch.stack([sure, 1 - sure, 0 * sure], 1), 3)


def test_what_is_kept_is_counted(answers):
    found = answered(answers, CLASSES, Images())
    assert (found["images"], found["answered"], found["right"]) == ([10, 30, 0], [7, 33, 0], [7, 30, 0])
    assert found["confusions"] == [(0, 1, 3)]
    errors = [sample for sample in found["samples"] if not sample["drawn"]]
    assert [sample["name"] for sample in errors] == ["2.png", "1.png", "0.png"]  # the surest first
    assert errors[0] | {"image": ""} == {
        "image": "",
        "name": "2.png",
        "label": 0,
        "classes": [1, 2, 0],
        "probabilities": [pytest.approx(0.5205, abs=1e-4), pytest.approx(0.4795, abs=1e-4), 0.0],
        "drawn": False,
    }
    drawn = [sample["name"] for sample in found["samples"] if sample["drawn"]]
    assert len(set(drawn)) == DRAWN
    assert drawn != [f"{index}.png" for index in range(DRAWN)]
    for sample in found["samples"]:
        assert Image.open(io.BytesIO(base64.b64decode(sample["image"]))).size == (PIXELS, round(PIXELS * 2 / 3))


def test_the_bytes_of_a_report_are_bounded(answers):
    one = answered(answers, CLASSES, Images())
    own = sum(len(sample["image"]) for sample in one["samples"])
    assert own < MOST_BYTES / (ERRORS + DRAWN) * len(one["samples"])
    kept = within_bytes([one] * 3, 2 * own)
    assert [bool(record["samples"]) for record in kept] == [True, True, False]
    assert kept[2]["right"] == one["right"]


def test_many_classes_keep_few_confusions():
    labels = torch.arange(100)
    answers = Answers(labels, (labels[:, None] + torch.arange(1, 3)) % 100, torch.full((100, 2), 0.5).double(), 100)
    found = answered(answers, [str(k) for k in range(100)], torch.utils.data.ChainDataset([]))
    assert len(found["confusions"]) == CONFUSIONS
    assert found["samples"] == []  # of a stream


def test_a_report_shows_the_answers_of_what_was_taken_out(answers, tmp_path):
    write_history(tmp_path / "search.jsonl", {}, [Evaluation(ARCH, {"accuracy": 0.5}, {"macs": 1.0}, 0)])
    found = answered(answers, CLASSES, Images())
    note_taken_out(tmp_path, ARCH, tmp_path / "subnet", {"accuracy": 0.9}, 40, found)
    (shown,) = answers_content(read_sources([tmp_path]).searches)
    assert shown["folder"] == "subnet"
    assert shown["intervals"] == [
        pytest.approx(wilson(0.7, 10), abs=1e-4),
        pytest.approx(wilson(1, 30), abs=1e-4),
        None,
    ]
    assert json.loads(json.dumps(shown))["samples"] == found["samples"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": [1, 2]}, "other numbers of images than of classes"),
        ({"confusions": [(0, 3, 1)]}, "classes beyond its 3"),
        ({"right": [11, 30, 0]}, "more answers are right than there are images"),
        ({"samples": [SAMPLE | {"image": "<"}]}, "base64"),
        ({"samples": [SAMPLE | {"classes": [], "probabilities": []}]}, "numbers"),
        ({"images": "many"}, "images"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(answers, tmp_path, change, message):
    found = answered(answers, CLASSES, Images())
    write_answered(tmp_path / "answered.json", found)
    assert read_answered(tmp_path / "answered.json")["images"] == found["images"]
    write_answered(tmp_path / "answered.json", {**found, **change})
    with pytest.raises(ValueError, match=f"answered.json is no record of answers: .*{message}"):
        read_answered(tmp_path / "answered.json")
