import copy
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from distill.losses import kl_divergence
from supernet.artifacts.runs import Job, load_run, run_job
from supernet.evaluation import accuracy, calibrated, calibrated_subnet
from supernet.families import FAMILIES
from supernet.supernet import DropRates
from supernet.tasks import Classification
from supernet.training.data import DataConfig, load_data, resize
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.divergence import TrainingError
from supernet.training.methods.sampling import Learner
from supernet.training.step import TrainConfig, TrainStep
from supernet.training.train import _Evaluation, train
from tests.small import SPACE, small

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.2)  # 43 images to train on, 5 batches
CONFIG = TrainConfig(
    epochs=2, batch_size=8, random_subnets=1, drop_rate=0.2, drop_path_rate=0.2, ema_decay=0.9, clip=1.0,
)  # fmt: skip
EXECUTION = Execution(workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=2)
JOB = Job(space=SPACE, data=DATA, train=CONFIG, execution=EXECUTION)


@pytest.fixture(scope="module")
def family():
    return small()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    return directory, run_job(JOB, directory)


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)


def test_a_step_adds_the_gradients_of_its_paths_and_teaches_by_the_logits_of_the_same_pass(family, batch):
    images, labels = batch
    net, reference = family.supernet().train(), family.supernet().train()
    config = TrainConfig(drop_rate=0.5, drop_path_rate=0.5)
    train_step = TrainStep(net, Classification(label_smoothing=0.1), config)
    largest, smallest = family.space.largest, family.space.restrict({"resolution": [32]}).smallest
    learners = [
        Learner(largest, regularised=True),
        Learner(smallest, teacher=0, label_weight=0.0),
        Learner(smallest, teacher=0, label_weight=0.3, teacher_weight=0.6),
    ]

    torch.manual_seed(0)
    losses, _ = train_step((images, labels), learners)

    torch.manual_seed(0)
    logits = reference(images, largest, rates=DropRates(0.5, 0.5))
    first = F.cross_entropy(logits, labels, label_smoothing=0.1)
    first.backward()
    second = kl_divergence(reference(images, smallest), logits.detach())
    second.backward()
    own = reference(images, smallest)
    third = 0.3 * F.cross_entropy(own, labels, label_smoothing=0.1) + 0.6 * kl_divergence(own, logits.detach())
    third.backward()
    assert losses.tolist() == [first.item(), second.item(), third.item()]
    for (name, parameter), expected in zip(net.named_parameters(), reference.parameters()):
        assert torch.equal(parameter.grad, expected.grad), name


def test_every_subnet_sees_the_images_in_its_own_resolution(family, batch):
    seen = []
    net = family.supernet().train()
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    archs = [family.space.validate({**family.space.smallest, "resolution": size}) for size in (24, 32)]
    learners = [Learner(arch, label_weight=0.5) for arch in archs]
    TrainStep(net, family.task, TrainConfig(accumulation=2))(batch, learners)
    for part, own in zip(batch[0].chunk(2), (seen[:2], seen[2:])):
        assert torch.equal(own[0], resize(part, 24))
        assert torch.equal(own[1], part)


def test_dropout_is_on_in_the_largest_subnet_alone(family, batch):
    images, labels = batch

    def losses(seed, learners):
        torch.manual_seed(seed)
        net = family.supernet().train()
        return TrainStep(net, family.task, TrainConfig(drop_rate=0.9))((images, labels), learners).losses

    largest = family.space.largest
    assert losses(0, [Learner(largest)]) == losses(1, [Learner(largest)])
    assert losses(0, [Learner(largest, regularised=True)]) != losses(1, [Learner(largest, regularised=True)])


def test_a_run_that_is_killed_and_resumed_ends_in_the_same_weights(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["supernet.artifacts.runs", "tests.small"])
    job = dataclasses.replace(JOB, train=dataclasses.replace(CONFIG, epochs=4))  # 20 steps

    def start(directory, *killed):
        process = context.Process(target=_train_on_one_thread, args=(job, directory, *killed))
        process.start()
        process.join()
        return process.exitcode

    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert start(uninterrupted) == 0
    moments = random.Random(os.getpid())
    for after in [0, *sorted(moments.sample(range(1, 6), 3))]:
        assert start(killed, after, moments.uniform(0, 0.02)) == -signal.SIGKILL
        assert after < 3 or list((killed / "checkpoints").glob("step-*.pt"))
    assert start(killed) == 0

    for name in ("supernet.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    lines = (killed / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))


def _train_on_one_thread(job, directory, after=None, seconds=0.0):
    """Train, and be killed so many `seconds` after the step `after`, if one is given; 0 is the beginning."""
    torch.set_num_threads(1)
    kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))

    def on_step(result):
        if after is not None and result.step >= after and kill.ident is None:
            kill.start()

    if after == 0:
        kill.start()
    run_job(job, directory, resume=True, on_step=on_step)


def test_subnets_are_evaluated_with_statistics_and_a_resolution_of_their_own(family, tmp_path):
    data = load_data(DATA)
    config = dataclasses.replace(CONFIG, epochs=1, lr=1.0, warmup_epochs=0, calibration_images=30)
    execution = dataclasses.replace(EXECUTION, eval_epochs=1, eval_images=200, eval_random=2)
    net = train(family, family.supernet(), data, config, tmp_path, execution)
    found = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["accuracy"]
    assert list(found) == ["largest", "smallest", "random_0", "random_1"]
    images, labels = data.images(data.holdout, 32, 200)
    few = data.calibration_images(32, 30, config.seed)
    for name, arch in (("largest", family.space.largest), ("smallest", family.space.smallest)):
        size = family.resolution(arch)
        model = calibrated_subnet(net, arch, size, few)
        assert found[name] == accuracy(model, [(resize(images, size), labels)])
        assert found[name] != accuracy(net.extract(arch), [(resize(images, size), labels)])
    assert {family.resolution(arch) for arch in (family.space.largest, family.space.smallest)} == {24, 32}


def test_evaluations_keep_pixels_and_recalibrate_within_the_bytes_of_the_execution(family, monkeypatch):
    data, execution = load_data(DATA), Execution(eval_images=30, calibration_bytes=5)
    given = []

    def watched(net, arch, batches, calibration_bytes):
        given.append(calibration_bytes)
        return calibrated(net, arch, batches, calibration_bytes)

    monkeypatch.setattr("supernet.training.train.calibrated", watched)
    evaluation = _Evaluation(family.task, family.space, data, CONFIG, execution, 24, family.num_classes)
    evaluation._metrics(family.supernet().eval(), family.space.smallest)
    kept = [*evaluation.calibration_batches, *evaluation.holdout]
    assert {images.values.dtype for images, _ in kept} == {torch.uint8}
    assert given == [5]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run_dir, caplog):
    newest, before = sorted((run_dir / "checkpoints").iterdir(), reverse=True)[:2]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    assert load_checkpoint(run_dir / "checkpoints")["step"] == int(before.stem.removeprefix("step-"))
    assert newest.name in caplog.text
    weights = (run_dir / "supernet.safetensors").read_bytes()
    run_job(JOB, run_dir, resume=True)
    assert (run_dir / "supernet.safetensors").read_bytes() == weights


def test_the_last_checkpoints_are_kept(run_dir):
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [
        "step-000000006.pt",
        "step-000000008.pt",
        "step-000000010.pt",
    ]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_checkpoint(tmp_path, family, monkeypatch, late):
    monkeypatch.setattr("supernet.training.loop.loop.computes_ahead", lambda device: late)  # as on a GPU
    config = dataclasses.replace(CONFIG, lr=1e30, warmup_epochs=0, ema_decay=None, clip=None)
    execution = dataclasses.replace(EXECUTION, checkpoint_steps=1)
    net = family.supernet()
    with pytest.raises(TrainingError, match=r"step \d+ for Arch\(\{'resolution'.*lower lr"):
        train(family, net, load_data(DATA), config, tmp_path, execution)
    state = load_checkpoint(tmp_path / "checkpoints")
    assert all(tensor.isfinite().all() for tensor in state["net"].values())
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == state["step"]
    if not late:
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, state["net"][name]), name


def test_looking_a_step_late_changes_nothing(tmp_path, family, monkeypatch):
    found = []
    for late in (False, True):
        monkeypatch.setattr("supernet.training.loop.loop.computes_ahead", lambda device, late=late: late)
        execution = dataclasses.replace(EXECUTION, checkpoint_steps=3, log_steps=2)
        train(family, family.supernet(), load_data(DATA), CONFIG, tmp_path / str(late), execution)
        found.append((tmp_path / str(late) / "metrics.jsonl").read_text())
        found.append(load_checkpoint(tmp_path / str(late) / "checkpoints"))
    assert found[0] == found[2]
    assert found[1]["divergence"] == found[3]["divergence"]
    for name, tensor in found[1]["net"].items():
        assert torch.equal(tensor, found[3]["net"][name]), name


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(run_dir):
    with pytest.raises(ValueError, match="holds a run already: add --resume"):
        run_job(JOB, run_dir)
    longer = dataclasses.replace(JOB, train=dataclasses.replace(CONFIG, epochs=3))
    with pytest.raises(ValueError, match=r"other settings.*train\.epochs=2"):
        run_job(longer, run_dir, resume=True)


def test_a_dataset_that_has_changed_since_is_refused(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config["images"]["train"] += 1
    (run_dir / "config.json").write_text(json.dumps(config))
    for use in (partial(load_run, space=SPACE), partial(run_job, JOB, resume=True)):
        with pytest.raises(ValueError, match="the dataset has changed since"):
            use(directory=run_dir)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    few = small(num_classes=3)
    with pytest.raises(ValueError, match=r"labels are \d to 9, but there are 3 classes"):
        train(few, few.supernet(), load_data(DATA), dataclasses.replace(CONFIG, batch_size=43), tmp_path, EXECUTION)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_an_unknown_device_is_refused(tmp_path, family, device):
    with pytest.raises(ValueError, match=f"device.*{device}"):
        train(family, family.supernet(), load_data(DATA), CONFIG, tmp_path, Execution(device))


def test_checkpoints_of_another_network_are_refused(tmp_path, family):
    config = dataclasses.replace(CONFIG, epochs=1, ema_decay=None)
    data = load_data(DATA)
    train(family, family.supernet(), data, config, tmp_path, EXECUTION)
    other = small(num_classes=7)
    with pytest.raises(ValueError, match=r"another network: tensor 'classifier"):
        train(other, other.supernet(), data, config, tmp_path, EXECUTION, resume=True)


def test_a_run_loads_with_the_weights_it_ended_in(finished, batch):
    directory, run = finished
    loaded = load_run(directory, space=SPACE)
    arch = run.family.space.smallest
    assert torch.equal(loaded.net(batch[0], arch), run.net(batch[0], arch))
    assert loaded.job == dataclasses.replace(JOB, train=dataclasses.replace(CONFIG, calibration_images=1000))


def test_an_unfinished_or_foreign_run_is_refused(run_dir, tmp_path):
    with pytest.raises(ValueError, match="is no directory of a training run"):
        load_run(tmp_path)
    for foreign in ("{}", '{"space": "mobilenet_v3_micro"}'):
        (tmp_path / "config.json").write_text(foreign)
        with pytest.raises(ValueError, match="has no job, classes and images"):
            load_run(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no description of a run: it is an object, not \[\]"):
        load_run(tmp_path)
    weights = run_dir / "supernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"supernet\.safetensors cannot be read"):
        load_run(run_dir)
    weights.unlink()
    with pytest.raises(ValueError, match="the run is not finished"):
        load_run(run_dir)


def test_training_does_not_depend_on_global_random_state(tmp_path, family):
    config = dataclasses.replace(CONFIG, epochs=1)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        net = copy.deepcopy(family.supernet())
        results.append(train(family, net, load_data(DATA), config, tmp_path / str(seed), EXECUTION))
    for name, tensor in results[0].state_dict().items():
        assert torch.equal(tensor, results[1].state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"lr": -1.0}, "lr is above 0"),
        ({"drop_rate": 1.0}, "drop_rate is from 0 to below 1"),
        ({"warmup_epochs": 3}, "warmup_epochs is from 0 to the 2 epochs"),
        ({"clip": 0.0}, "clip is above 0"),
        ({"temperature": 2.0, "distillation": "adaptive_alpha"}, "temperature"),
    ],
)
def test_contradictory_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_images_of_another_type_or_number_of_channels_are_refused(family, batch, tmp_path):
    net = family.supernet()
    with pytest.raises(ValueError, match=r"the images are torch\.uint8 and the weights torch\.float32"):
        net(batch[0].to(torch.uint8), family.space.smallest)
    grey = small(in_chans=1)
    with pytest.raises(ValueError, match=r"\[8, 3, 32, 32\] of torch\.float32, but this space takes .* \[N, 1, R, R\]"):
        train(grey, grey.supernet(), load_data(DATA), CONFIG, tmp_path, EXECUTION)


def test_parts_of_a_batch_one_after_another_give_the_mean_of_their_gradients(family, tmp_path):
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(8, 3, 32, 32, generator=draw), torch.randint(10, (8,), generator=draw)
    learners = [Learner(family.space.largest), Learner(family.space.smallest, teacher=0, label_weight=0.0)]
    net, reference = family.supernet().double().train(), family.supernet().double().train()
    TrainStep(net, family.task, TrainConfig(accumulation=2))((images.double(), labels), learners)
    for part in (slice(0, 4), slice(4, 8)):
        whole = TrainStep(reference, family.task, TrainConfig())
        whole((images[part].double(), labels[part]), learners)
    for (name, parameter), whole in zip(net.named_parameters(), reference.parameters()):
        torch.testing.assert_close(parameter.grad, whole.grad / 2, rtol=1e-12, atol=1e-15, msg=name)


def test_accumulation_splits_every_batch(family, tmp_path):
    data = load_data(DATA)
    config = dataclasses.replace(CONFIG, epochs=1, accumulation=2, ema_decay=None)

    def images_of_the_largest(config, directory):
        seen = []
        net = family.supernet()
        net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        train(family, net, data, config, directory, EXECUTION)
        return seen[::3]  # a random subnet and the smallest follow

    parts = images_of_the_largest(config, tmp_path / "parts")
    batches = images_of_the_largest(dataclasses.replace(config, accumulation=1), tmp_path / "whole")
    assert [len(images) for images in parts] == [4] * 10
    assert torch.equal(torch.cat(parts), torch.cat(batches))
    thirds = dataclasses.replace(config, accumulation=3)
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3 equal parts"):
        train(family, family.supernet(), data, thirds, tmp_path / "thirds", EXECUTION)


def test_an_exponential_schedule_ends_in_a_constant_rate(family, tmp_path):
    config = dataclasses.replace(
        CONFIG, epochs=4, lr=0.32, warmup_epochs=1, sched="step", decay_rate=0.5, decay_epochs=0.8, min_lr=0.06
    )
    rates = []
    net = family.supernet()
    train(family, net, load_data(DATA), config, tmp_path, EXECUTION, on_step=lambda result: rates.append(result.lr))
    warm = [0.01 * (step + 0.5) / 5 for step in range(5)]
    # 0.32 for 256 images is 0.01 for 8, halved every 4 of the 5 steps of an epoch, but never below 0.06 / 32
    after = [max(0.01 * 0.5 ** int((step + 0.5) // 4), 0.06 / 32) for step in range(5, 20)]
    assert rates == pytest.approx(warm + after)
    assert rates[-1] == pytest.approx(0.06 / 32)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own tracing looks at it
def test_compiled_subnets_train_to_the_same_weights(tmp_path, monkeypatch):
    family = FAMILIES["mobilenet_v3_micro"]()
    compiled = []

    def trace_only(function, **options):
        def traced(graph, inputs):
            compiled.append(graph)
            return graph

        return torch_compile(function, backend=traced, **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", trace_only)
    data = load_data(DATA)
    config = dataclasses.replace(CONFIG, epochs=1)
    plain = train(family, family.supernet(), data, config, tmp_path / "plain", EXECUTION)
    execution = dataclasses.replace(EXECUTION, step="compile")
    fast = train(family, family.supernet(), data, config, tmp_path / "compiled", execution)
    assert 10 < len(compiled) < 40  # of a dozen kinds of pieces in some 50 sizes
    for name, tensor in fast.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
