import csv
import gzip
import json

import numpy as np
import pytest
import torch

from supernet.training.data import DataConfig, load_data
from supernet.training.data.text import read_table, text, tokens_of, trained_tokenizer

pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")

WORDS = {"sport": ["goal", "match", "team"], "trade": ["market", "price", "stock"]}


def rows(count: int = 60) -> list[dict[str, str]]:
    """Texts of two classes, a third of them of the second, each with a word of its class and a number of its own."""
    draw = np.random.default_rng(0)
    classes = ["trade" if index % 3 == 0 else "sport" for index in range(count)]
    return [
        {"topic": name, "title": f"The {draw.choice(WORDS[name])}", "body": f"of day {index}, Café"}
        for index, name in enumerate(classes)
    ]


def write_csv(path, found):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)
    return path


@pytest.fixture
def table(tmp_path):
    return str(write_csv(tmp_path / "table.csv", rows()))


OPTIONS = {"text": ["title", "body"], "label": "topic", "length": 8, "test": 0.2, "holdout": 0.25}


def decoded(data, part):
    return [tuple(row[row != data.padding].tolist()) for row in part[0]]


def test_each_class_is_in_every_part_and_no_row_in_two(table):
    data = text(table, **OPTIONS)
    parts = [data.train, data.holdout, data.test]
    assert [len(labels) for _, labels in parts] == [36, 12, 12]
    assert [labels.sum().item() for _, labels in parts] == [12, 4, 4]
    assert data.classes == ("sport", "trade")
    found = [row for part in parts for row in decoded(data, part)]
    assert len(set(found)) == 60
    assert data.family_arguments["num_classes"] == 2
    assert text(table, **OPTIONS).description() == data.description()
    assert text(table, **OPTIONS, seed=1).description() != data.description()


def test_tokens_are_those_of_the_texts(table):
    data = text(table, **OPTIONS)
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(data.files()["tokenizer.json"])
    texts = {tokenizer.decode(list(row)): label for row, label in zip(decoded(data, data.test), data.test[1].tolist())}
    expected = {f"{row['title']} {row['body']}".lower().replace("é", "e"): row["topic"] for row in rows()}
    assert all(expected[found.replace(" ,", ",")] == data.classes[label] for found, label in texts.items())
    assert data.test[0].shape == (12, 8)
    assert data.test[0].dtype == torch.int32


def test_the_tokenizer_knows_the_training_texts_alone(tmp_path):
    found = rows()
    write_csv(tmp_path / "table.csv", found)
    write_csv(tmp_path / "test.csv", [row | {"title": "qqq"} for row in found[:9]])
    data = text(str(tmp_path / "table.csv"), **OPTIONS, test_file=str(tmp_path / "test.csv"))
    assert not any("qq" in token for token in json.loads(data.tokenizer)["model"]["vocab"])
    assert len(data.test[1]) == 9
    assert len(data.train[1]) + len(data.holdout[1]) == 60


def test_the_same_texts_give_the_same_tokenizer():
    """Though the package counts words in tables whose order is another each time."""
    texts = [f"{a}{b}{a} {b}{b}{a}" for a in "abcdefghij" for b in "klmnopqrst"]
    assert len({trained_tokenizer(texts, 300).to_str() for _ in range(20)}) == 1


def test_a_tokenizer_from_a_file(table, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text(table, **OPTIONS).tokenizer)
    again = text(table, **OPTIONS, tokenizer=str(tmp_path / "tokenizer.json"))
    assert again.description() == text(table, **OPTIONS).description()
    content = json.loads(again.tokenizer)
    content["added_tokens"] = []
    content["model"] |= {"vocab": {"a": 0}, "merges": []}
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other.json has no token that fills texts up, such as \[PAD\]"):
        text(table, **OPTIONS, tokenizer=str(tmp_path / "other.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is no file of a tokenizer"):
        text(table, **OPTIONS, tokenizer=str(tmp_path / "broken.json"))


def test_long_texts_are_cut_and_short_ones_filled_up():
    tokenizer = trained_tokenizer(["one two three"] * 9, 300)
    one, two, three = (tokenizer.token_to_id(word) for word in ("one", "two", "three"))
    assert tokens_of(tokenizer, ["one two three", "two", ""], 2, 0).tolist() == [[one, two], [two, 0], [0, 0]]
    assert tokens_of(tokenizer, ["one two three"], 3, 0).tolist() == [[one, two, three]]


def test_dropped_tokens_follow_from_the_step(table):
    data = text(table, **OPTIONS, token_dropout=0.5)
    plain = text(table, **OPTIONS, token_dropout=0.0)
    steps = range(8)
    dropped, whole = ([*own.training_batches(None, 18, 3, steps)] for own in (data, plain))
    again = [*data.training_batches(None, 18, 3, range(5, 8))]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(again, dropped[5:]))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(dropped, whole))
    changed = torch.cat([a[0] != b[0] for a, b in zip(dropped, whole)])
    tokens, now = (torch.cat([batch[0] for batch in batches]) for batches in (whole, dropped))
    assert not changed[tokens == data.padding].any()
    assert (now[changed] == data.unknown).all()
    assert 0.4 < changed[tokens != data.padding].float().mean() < 0.6
    assert torch.equal(next(iter(data.evaluation_batches(data.test, None)))[0], plain.test[0])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv.gz", "tsv"])
def test_tables_of_every_kind_are_the_same(tmp_path, table, kind):
    path = tmp_path / f"other.{kind}"
    if "json" in kind:
        content = "\n".join(json.dumps(row | {"topic": int(row["topic"] == "trade")}) for row in rows()) + "\n\n"
    else:
        content = (tmp_path / "table.csv").read_text()
        content = content.replace("trade,", "1,").replace("sport,", "0,")
        if kind == "tsv":
            content = "\n".join("\t".join(row) for row in csv.reader(content.splitlines()))
    path.write_bytes(gzip.compress(content.encode()) if kind.endswith("gz") else content.encode())
    data, expected = text(str(path), **OPTIONS), text(table, **OPTIONS)
    assert data.classes == ("0", "1")
    assert data.description() == expected.description()


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a b", "label": label}) for label in [10, 2, 9] * 4))
    assert text(str(path), test=0.4, holdout=0.4).classes == ("2", "9", "10")


def test_a_folder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]}, features).save_to_disk(tmp_path / "saved")
    assert read_table(str(tmp_path / "saved"), ["text"], "label") == (["one", "two"], ["b", "a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,1\ny\n", r"a.csv, line 3, has fewer cells than there are columns"),
        ("b.csv", "title,label\nx,1\n", r"row 1 of .*b.csv has no 'text'; its columns are title, label"),
        ("c.csv", "text,label\n", "c.csv has no rows"),
        ("d.csv", "text,label\nx,1\ny,1\n", "the column 'label' of .*d.csv has one class alone, '1'"),
        ("e.jsonl", '{"text": "x", "label": 1}\n[1]\n', "line 2 of .*e.jsonl is no JSON object"),
        ("f.jsonl", '{"text": "x"', "f.jsonl cannot be read: "),
        ("g.xlsx", "", "g.xlsx is no table that can be read"),
        ("h.csv.gz", "text,label\n", "h.csv.gz cannot be read: Not a gzipped file"),
        (None, "", "there is no table '.*none.csv': say with --root"),
    ],
)
def test_what_is_no_table_of_texts_is_refused(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        text(str(tmp_path / (name or "none.csv")))


@pytest.mark.parametrize("options", [{"test": 0.0}, {"holdout": 1.0}, {"token_dropout": 1.0}, {"length": 0}])
def test_settings_that_mean_nothing_are_refused(table, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        text(table, **OPTIONS | options)


def test_texts_by_name(table):
    options = json.dumps(OPTIONS)
    data = load_data(DataConfig("text", root=table, dataset_options=options))
    assert data.description() == text(table, **OPTIONS).description()
    with pytest.raises(ValueError, match="hflip is a setting of images"):
        load_data(DataConfig("text", root=table, hflip=0.1))
    with pytest.raises(ValueError, match="do not fit the dataset 'text': missing a required argument: 'root'"):
        load_data(DataConfig("text", dataset_options=options))
