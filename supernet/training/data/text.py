"""Texts with classes: a table's rows, and a tokenizer that is trained on them or comes from a file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from supernet.artifacts.reading import numbered_rows
from supernet.errors import first_line
from supernet.imports import require
from supernet.training.data.splits import hold_out, warn_of_small_classes
from supernet.training.data.tensors import TensorData
from supernet.training.randomness import Stream, generator

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# N texts, L length in tokens

PADDING, UNKNOWN = "[PAD]", "[UNK]"
PADDINGS = (PADDING, "<pad>", "<|endoftext|>")  # what tokenizers from files fill texts up with
UNKNOWNS = (UNKNOWN, "<unk>", "[MASK]", "<mask>")


class Table(NamedTuple):
    """Texts, and the name of the class of each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class TextData(TensorData):
    """Batches of tokens [N, L], filled up with `padding`, and labels [N].

    In training each token is taken for `unknown` with the probability `token_dropout` (the word dropout of Iyyer et
    al., ACL 2015), anew in every step. `tokenizer` is its file's content, by which other texts become tokens.
    """

    tokenizer: str = ""
    padding: int = 0
    unknown: int = 1
    token_dropout: float = 0.0

    def training_batches(
        self, resolution: int | None, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        batches = super().training_batches(resolution, batch_size, seed, steps, rank, world_size)
        for step, (tokens, labels) in zip(steps, batches):
            if self.token_dropout:
                draw = generator(seed, Stream.AUGMENTATION, step, rank).random(tokens.shape)
                drop = torch.from_numpy(draw < self.token_dropout) & (tokens != self.padding)
                tokens = tokens.masked_fill(drop, self.unknown)
            yield tokens, labels

    def files(self) -> Mapping[str, str]:
        return {"tokenizer.json": self.tokenizer}


def text(
    root: str,
    text: str | Sequence[str] = "text",
    label: str = "label",
    test_file: str | None = None,
    test: float = 0.1,
    holdout: float = 0.1,
    length: int = 64,
    vocabulary: int = 8192,
    tokenizer: str | None = None,
    token_dropout: float = 0.1,
    seed: int = 0,
) -> TextData:
    """The rows of the table `root`: a CSV file with a header, JSON lines (.jsonl, .ndjson), either also as .gz, or a
    folder that the package `datasets` saved.

    `text` is the column of the texts, or several, whose texts are joined, and `label` that of the classes, numbers or
    names. The part `test` of each class is tested on, or all of `test_file`, and of the others the part `holdout`
    judges subnets; which rows these are follows from `seed`. The tokenizer, of
    `vocabulary` tokens, is trained on the training texts (`trained_tokenizer`), or read from the file `tokenizer`
    (tokenizer.json). Texts are cut to `length` tokens, and in training each of these is dropped with the probability
    `token_dropout`. ValueError, naming the row or the column, if the table cannot be read.
    """
    for name, part in (("test", test), ("holdout", holdout), ("token_dropout", token_dropout)):
        if not 0 <= part < 1 or (part == 0 and name != "token_dropout"):
            raise ValueError(f"{name} is a part, between 0 and 1, not {part}")
    if length < 1:
        raise ValueError(f"length is a number of tokens, at least 1, not {length}")
    columns = [text] if isinstance(text, str) else list(text)
    table = read_table(root, columns, label)
    classes = sorted(set(table.labels), key=_order)
    if len(classes) < 2:
        raise ValueError(
            f"the column {label!r} of {root} has one class alone, {classes[0]!r}: there is nothing to tell"
        )
    labels = _numbered(table.labels, classes, root)
    draw = generator(seed, Stream.SPLIT)
    if test_file is None:
        others, tested = hold_out(labels, test, draw)
        test_table = Table([table.texts[i] for i in tested], [table.labels[i] for i in tested])
    else:
        others, test_table = list(range(len(labels))), read_table(test_file, columns, label)
    train, held_out = hold_out(labels[others], holdout, draw)
    warn_of_small_classes(labels[others], classes)
    train, held_out = [others[i] for i in train], [others[i] for i in held_out]
    read = _load(tokenizer) if tokenizer else trained_tokenizer([table.texts[i] for i in train], vocabulary)
    padding = _token(read, PADDINGS, tokenizer, "that fills texts up, such as [PAD]")
    unknown = _token(read, UNKNOWNS, tokenizer, "for unknown words, such as [UNK]") if token_dropout else padding

    def part(texts: Sequence[str], numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        return tokens_of(read, texts, length, padding), torch.from_numpy(numbers)

    return TextData(
        part([table.texts[i] for i in train], labels[train]),
        part([table.texts[i] for i in held_out], labels[held_out]),
        part(test_table.texts, _numbered(test_table.labels, classes, test_file or root)),
        classes=tuple(classes),
        family_arguments={
            "num_classes": len(classes),
            "vocabulary": read.get_vocab_size(),
            "length": length,
            "padding": padding,
        },
        tokenizer=read.to_str(),
        padding=padding,
        unknown=unknown,
        token_dropout=token_dropout,
    )


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary` word pieces in lower case and without accents, as BERT's uncased one; its
    first two tokens fill up texts and stand for unknown words. The same texts give the same tokenizer.

    The package numbers characters within words in the order of a table that is another one every time, and pairs that
    are as frequent are merged by these numbers. It therefore gets them in their order, in the place of special tokens,
    which they are no longer in what comes out.
    """
    library = require("tokenizers")
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = library.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece()
    special = [PADDING, UNKNOWN]
    characters = sorted(set().union(*map(tokenizer.normalizer.normalize_str, texts)) - {" "})
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*special, *(f"##{c}" for c in characters)], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    return library.Tokenizer.from_str(json.dumps(content))


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str], length: int, padding: int) -> Tensor:
    """The tokens [N, L] of `texts`, cut to `length` or filled up to it with the token `padding`, in int32."""
    rows = np.full((len(texts), length), padding, dtype=np.int32)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    for row, found in zip(rows, tokenizer.encode_batch(list(texts))):
        row[: len(found.ids)] = found.ids
    return torch.from_numpy(rows)


def read_table(place: str, columns: Sequence[str], label: str) -> Table:
    """The texts of `columns`, joined by a space, and the labels in the column `label`, of the table at `place`."""
    texts, labels = [], []
    for number, row in enumerate(_rows(Path(place)), 1):
        for name in (*columns, label):
            if row.get(name) is None:
                there = ", ".join(map(str, row))
                raise ValueError(
                    f"row {number} of {place} has no {name!r}; its columns are {there}: name those of the "
                    "texts and the classes with the options text and label"
                )
        texts.append(" ".join(str(row[name]) for name in columns))
        labels.append(str(row[label]))
    if not texts:
        raise ValueError(f"{place} has no rows")
    return Table(texts, labels)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        raise ValueError(f"there is no table {str(path)!r}: say with --root where it lies")
    if path.is_dir():
        yield from _saved_dataset(path)
        return
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ValueError(f"{path} is no table that can be read: a .csv, .tsv or .jsonl file, or one of these as .gz")
    if suffix in (".csv", ".tsv"):
        delimiter = "," if suffix == ".csv" else "\t"
        yield from (row for _, row in numbered_rows(path, delimiter=delimiter, complete=True))
        return
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line) if line.strip() else None
                if isinstance(row, dict):
                    yield row
                elif row is not None:
                    raise ValueError(f"line {number} of {path} is no JSON object with the columns by their names")
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error


def _saved_dataset(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a `Dataset` that was saved with `save_to_disk`, classes by their names."""
    datasets = require("datasets")
    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.Dataset):
        raise ValueError(f"{path} has several splits, {', '.join(saved)}: name the folder of one of them")
    named = {name: kind.names for name, kind in saved.features.items() if isinstance(kind, datasets.ClassLabel)}
    return ({n: named[n][v] if n in named and v >= 0 else v for n, v in row.items()} for row in saved)


def _load(path: str) -> Tokenizer:
    library = require("tokenizers")
    try:
        return library.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing more precise
        raise ValueError(f"{path} is no file of a tokenizer, tokenizer.json: {first_line(error)}") from error


def _token(tokenizer: Tokenizer, names: Sequence[str], path: str | None, what: str) -> int:
    """The number of the first of `names` that the tokenizer has."""
    found = next((number for name in names if (number := tokenizer.token_to_id(name)) is not None), None)
    if found is None:
        raise ValueError(f"the tokenizer in {path} has no token {what}, but {', '.join(names)} are looked for")
    return found


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers first, by their size."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def _numbered(labels: Sequence[str], classes: Sequence[str], place: str) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(set(labels) - numbers.keys()):
        raise ValueError(f"{place} has the class {unknown[0]!r}, which no training row has")
    return np.array([numbers[label] for label in labels])
