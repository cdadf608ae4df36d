import pytest

from supernet.training.data.second_labels import read_second_labels

NAMES = ["/images/train/cat/1.png", "/images/train/cat/2.png", "/images/train/dog/1.png"]


def written(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return str(path)


def test_labels_are_found_by_whole_names_and_from_the_root_on(tmp_path):
    path = written(
        tmp_path,
        "label,file,more\nred,train/dog/1.png,x\nblue,/images/train/cat/1.png,x\n,train/cat/2.png,x\nred,held/out.png,\n",
    )
    found = read_second_labels(path, NAMES, "/images")
    assert found.classes == ("blue", "red")
    assert found.labels.tolist() == [0, -1, 1]


def test_labels_have_a_digest_that_changes_with_them(tmp_path):
    text = "file,label\ntrain/cat/1.png,a\ntrain/cat/2.png,b\n"
    first = read_second_labels(written(tmp_path, text), NAMES, "/images")
    again = read_second_labels(written(tmp_path, text + "other.png,c\n"), NAMES, "/images")
    other = read_second_labels(written(tmp_path, text + "train/dog/1.png,a\n"), NAMES, "/images")
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "has no column 'file'"),
        ("", "has no column 'file'"),
        ("file,label\ntrain/cat/1.png,a\n", r"gives 1 of the 3 training images 1 classes.* like train/cat/1.png"),
        ("file,label\ntrain/cat/1.png,a\n/images/train/cat/1.png,b\n", "two labels of /images/train/cat/1.png"),
    ],
)
def test_files_without_two_classes_of_images_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_second_labels(written(tmp_path, text), NAMES, "/images")


def test_what_cannot_be_read_or_has_no_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file"):
        read_second_labels(str(tmp_path / "none.csv"), NAMES, None)
    with pytest.raises(ValueError, match="have no names"):
        read_second_labels("labels.csv", None, None)
