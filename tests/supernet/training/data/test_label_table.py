"""Tables of labels, and images with several of them from the file to the subnet's answer."""

import numpy as np
import pytest
from PIL import Image

from supernet.answers.photographs import predictions
from supernet.artifacts.runs import Job, load_run, run_job
from supernet.artifacts.subnet import load_subnet, save_subnet, take_out
from supernet.evaluation import evaluate
from supernet.tasks import MultiLabel
from supernet.training.data import DataConfig
from supernet.training.data.image_data import open_images
from supernet.training.data.label_table import open_label_table
from supernet.training.data.named import only_images
from supernet.training.execution import Execution
from supernet.training.standalone import ModelJob, run_model_job
from supernet.training.step import TrainConfig


def write(folder, name, text, count=4):
    for index in range(count):
        Image.new("RGB", (8, 8), (10 * index, 0, 0)).save(folder / f"{index}.png")
    (folder / name).write_text(text)


def test_names_of_classes_are_those_of_all_tables(tmp_path):
    write(tmp_path, "train.csv", "file,labels\n0.png,dog; cat\n1.png,\n")
    write(tmp_path, "val.csv", "labels,file\nbird 10;bird 9,2.png\n")
    train, test = open_label_table(str(tmp_path), "train"), open_label_table(str(tmp_path), "validation")
    assert train.classes == test.classes == ("bird 9", "bird 10", "cat", "dog")
    assert train.targets.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert test.targets.tolist() == [[1, 1, 0, 0]]
    image, marks = train[0]
    assert (image.getpixel((0, 0)), marks.tolist()) == ((0, 0, 0), [0, 0, 1, 1])


def test_a_column_for_each_class_and_a_split_in_one_table(tmp_path):
    text = "split,file,red,blue\ntrain,0.png,1,0\nval,1.png,,1\ntraining,2.png,TRUE,1.0\n"
    write(tmp_path, "labels.csv", text)
    train = open_label_table(str(tmp_path), "train")
    assert (train.classes, train.targets.tolist()) == (("red", "blue"), [[1, 0], [1, 1]])
    assert [name.rpartition("/")[2] for name in train.names] == ["0.png", "2.png"]
    assert open_label_table(str(tmp_path), "validation").targets.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,labels\n0.png,a\n", "train.csv has no column 'file', it needs file and has 'image, labels'"),
        ("file\n0.png\n", "train.csv has no labels: give it the column labels, or one for each class"),
        ("file,a,a\n0.png,1,1\n", "train.csv has the column 'a' twice"),
        ("file,a,b\n0.png,1,2\n", "train.csv, line 2: b is 1 for an image that shows it and 0 otherwise, not '2'"),
        ("file,a,b\n0.png,1\n", "train.csv, line 2, has fewer cells than there are columns"),
        ("file,labels\n9.png,a\n", "line 2: there is no image '9.png'"),
        ("file,labels\n0.png,a\n./0.png,b\n", "line 3: './0.png' is there twice"),
        ("file,labels\n", "no images of the split 'train'"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_in_a_line(tmp_path, text, said):
    write(tmp_path, "train.csv", text)
    with pytest.raises(ValueError, match="csv") as error:
        open_label_table(str(tmp_path), "train")
    assert said in str(error.value)


def test_tables_of_different_columns_are_refused(tmp_path):
    write(tmp_path, "train.csv", "file,a,b\n0.png,1,0\n")
    write(tmp_path, "val.csv", "file,b,a\n1.png,1,0\n")
    with pytest.raises(ValueError, match="have different columns"):
        open_label_table(str(tmp_path), "train")
    with pytest.raises(ValueError, match="root is the folder of the tables"):
        open_label_table(str(tmp_path / "train.csv"), "train")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images whose four quarters are lit or not, which are their labels."""
    folder, draw = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 160), ("val", 40)):
        lines = ["file,a,b,c,d"]
        for index in range(count):
            marks = draw.integers(0, 2, 4)
            pixels = np.kron(marks.reshape(2, 2), np.ones((4, 4))) * 150 + draw.integers(0, 60, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}{index}.png")
            lines.append(",".join([f"{split}{index}.png", *map(str, marks)]))
        (folder / f"{split}.csv").write_text("\n".join(lines))
    return folder


DATA = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": 0.0, "crop_pct": 1.0, "holdout": 0.2}


@pytest.mark.parametrize("max_steps", [2, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_a_supernet_learns_several_labels_and_its_subnet_tells_them(squares, tmp_path, max_steps):
    data = DataConfig("multilabel", str(squares), **DATA)
    train = TrainConfig(epochs=6, max_steps=max_steps, batch_size=32, lr=0.4, calibration_images=64, random_subnets=1)
    execution = Execution("cpu", workers=0, eval_epochs=6, eval_random=0, cache_bytes=10**6)
    run_job(Job(data=data, train=train, execution=execution), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert isinstance(run.family.task, MultiLabel)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"mean_average_precision": {"largest": ' in metrics
    arch = run.family.space.largest
    subnet = take_out(run, arch)
    found = evaluate(subnet.model, run.family.task, run.data.evaluation_batches(run.data.test, 8), arch)
    assert found["mean_average_precision"] > (0.2 if max_steps else 0.8)  # where chance is a half
    save_subnet(tmp_path / "subnet", subnet, onnx=False)
    again = load_subnet(tmp_path / "subnet")
    answers = list(predictions(again, [str(squares / f"val{index}.png") for index in range(8)], top=4))
    told = [dict(zip(answer.classes, answer.probabilities)) for answer in answers]
    assert max(sum(own.values()) for own in told) > 1.5  # each class by itself
    sure = np.array([[own[name] > 0.5 for name in "abcd"] for own in told])
    assert max_steps or (sure == (run.data.test.targets[:8] > 0)).mean() > 0.7


def test_a_single_model_learns_several_labels_and_what_needs_one_is_refused(squares, tmp_path):
    data = DataConfig("multilabel", str(squares), **DATA)
    train = TrainConfig(epochs=1, batch_size=32)
    execution = Execution("cpu", workers=0, eval_epochs=1)
    subnet = run_model_job(ModelJob(data=data, train=train, execution=execution), tmp_path)
    assert isinstance(subnet.config.family().task, MultiLabel)
    assert "mean_average_precision" in (tmp_path / "metrics.jsonl").read_text()
    images = open_images(data)
    assert images.training_labels() is None
    with pytest.raises(ValueError, match="needs images with one class each, and these have several: leave it"):
        only_images(images, "pruning", "leave it")
    balanced = open_images(DataConfig("multilabel", str(squares), balanced=True))
    with pytest.raises(ValueError, match="does not tell one label an image: leave out balanced"):
        balanced.training_batches(8, 2, 0, range(1))
