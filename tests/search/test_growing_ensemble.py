"""Who joins an ensemble, whom candidates learn from, and that nothing is trained twice."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from search.growing_ensemble import EnsembleJob, candidate_job, ensemble_of, grow_ensemble, with_fitted_weights
from supernet.artifacts.subnet import load_subnet
from supernet.families import FAMILIES
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

SPACE = FAMILIES["mobilenet_v3_micro"]().space
ARCHS = tuple(
    SPACE.validate({**SPACE.smallest, "features.width": width, "resolution": 24}).to_json()
    for width in SPACE.choices["features.width"].values
)
JOB = EnsembleJob(
    "mobilenet_v3_micro",
    ARCHS,
    members=2,
    candidates=2,
    data=DataConfig(holdout=0.97),
    train=LoopConfig(epochs=1, batch_size=8, warmup_epochs=0),
    execution=Execution(workers=0, eval_epochs=0),
)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growing")
    trained = []
    ensemble = grow_ensemble(JOB, folder, on_step=lambda *place: trained.append(place[:2]))
    return folder, ensemble, list(dict.fromkeys(trained))


def heldout_loss(models):
    data = load_data(JOB.data)
    (batch,) = [(images, labels) for images, labels in [_joined(data)]]
    with torch.inference_mode():
        logits = sum(model.eval()(batch[0]) for model in models) / len(models)
    return F.cross_entropy(logits, batch[1]).item()


def _joined(data):
    images, labels = zip(*data.evaluation_batches(data.holdout, 24))
    return torch.cat(images), torch.cat(labels)


def same(model, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_candidate_whose_ensemble_has_the_least_loss_joins(grown):
    folder, ensemble, trained = grown
    assert trained == [(1, 1), (1, 2), (2, 1), (2, 2)]
    first = [load_subnet(folder / name).model for name in ("1-1", "1-2")]
    best = min(first, key=lambda model: heldout_loss([model]))
    second = [load_subnet(folder / name).model for name in ("2-1", "2-2")]
    joined = min(second, key=lambda model: heldout_loss([best, model]))
    assert same(ensemble.model.members[0], best)
    assert same(ensemble.model.members[1], joined)
    assert ensemble.model.weights.tolist() == [0.5, 0.5]


def test_nothing_is_trained_again_and_more_members_may_be_asked_for(grown):
    folder, ensemble, _ = grown
    again = grow_ensemble(JOB, folder, on_step=lambda *place: pytest.fail("trained again"))
    assert same(again.model, ensemble.model)
    with pytest.raises(ValueError, match=r"other settings \(learn_from=adaptive\): name another folder"):
        grow_ensemble(dataclasses.replace(JOB, learn_from="labels"), folder)
    fewer = grow_ensemble(dataclasses.replace(JOB, members=1), folder)
    assert len(fewer.model.members) == 1


def test_candidates_learn_from_whom_is_said_with_seeds_of_their_own(tmp_path):
    members = [tmp_path / "1-2", tmp_path / "2-1"]

    def teacher(learn_from, count):
        job = dataclasses.replace(JOB, learn_from=learn_from)
        return candidate_job(job, count + 1, 1, tmp_path, members[:count]).teacher

    assert teacher("adaptive", 0) is None
    assert teacher("adaptive", 2) == str(tmp_path / "ensemble-2")
    assert teacher("born_again", 2) == str(tmp_path / "2-1")
    assert teacher("labels", 2) is None
    jobs = [candidate_job(JOB, i, c, tmp_path, []) for i in (1, 2) for c in (1, 2)]
    assert len({job.train.seed for job in jobs}) == 4
    assert [job.arch for job in jobs] == [*ARCHS, *ARCHS]


def test_fitted_weights_lower_the_held_out_loss(grown):
    folder, _, _ = grown
    data = load_data(JOB.data)
    pair = ensemble_of([load_subnet(folder / name) for name in ("1-1", "2-1")], data)
    before = heldout_loss([pair.model])
    fitted = with_fitted_weights(pair, data, JOB.execution)
    assert heldout_loss([fitted.model]) < before
    assert fitted.model.weights.tolist() != [0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 0}, "at least 1 member"),
        ({"archs": ()}, "1 architecture, not 2, 2 and 0"),
        ({"learn_from": "teacher"}, "not 'teacher'"),
        ({"space": "mine.py:family"}, "not of 'mine.py:family'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(JOB, **changes)


def test_the_command_grows_one_from_a_run(command, tmp_path):
    train = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--eval-epochs", "0", "--holdout", "0.97"]
    assert command("train", *train, "--output", tmp_path / "run").returncode == 0
    grow = ["train-ensemble", "--run", tmp_path / "run", "--members", "2", "--candidates", "1", "--fit-weights"]
    result = command(*grow, "--output", tmp_path / "ensemble", "--no-onnx")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("of the test images are right") == 4
    model, config = load_subnet(tmp_path / "ensemble")
    assert len(model.members) == 2
    assert json.loads(config.space_options)["members"][0]["space"] == "mobilenet_v3_micro"
    again = command(*grow, "--output", tmp_path / "ensemble")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "holds a model already" in again.stderr
