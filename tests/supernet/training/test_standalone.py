import dataclasses
import json
import shutil

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from distill.losses import kl_divergence
from distill.objective import Objective
from netaug.training import NetAugJob
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.evaluation import accuracy
from supernet.families.named import make_family
from supernet.training.accompanied import Cohort
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, ImageData, load_data, resize
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import TrainingError
from supernet.training.loop.optimizer import make_optimizer
from supernet.training.randomness import Stream, part_seed
from supernet.training.recipes import digits
from supernet.training.standalone import (
    ModelJob,
    initial_model,
    model_settings,
    peer_jobs,
    prepare_job,
    read_model_job,
    run_model_job,
)

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on, 5 batches
CONFIG = LoopConfig(epochs=2, batch_size=8, warmup_epochs=1.0, seed=3)
EXECUTION = Execution(workers=0, eval_epochs=1, eval_images=20, log_steps=1, checkpoint_steps=2)
SILENT = dataclasses.replace(EXECUTION, eval_epochs=0)
MICRO = ModelJob(data=DATA, train=CONFIG, execution=EXECUTION, arch=json.dumps({}))


def network(channels: int = 4) -> nn.Module:
    torch.manual_seed(channels)
    layers = [nn.Conv2d(3, channels, 3, 2), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_loop_is_nesterovs_on_the_weighted_losses(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, weight_decay=0.0, label_smoothing=0.0)
    model, reference, teacher = network().train(), network().train(), network(6).train()
    model[3].p = reference[3].p = 0.0
    data = load_data(DATA, config.seed)
    objective = Objective(labels=0.5, kl=2.0, temperature=3.0)
    train_models([model], [16], data, config, tmp_path, objective, teacher, execution=SILENT)
    assert not any(module.training for module in teacher.modules())

    optimizer = torch.optim.SGD(reference.parameters(), momentum=0.9, nesterov=True)
    lines = metrics(tmp_path)
    batches = data.training_batches(16, 8, config.seed, range(5))
    for line, batch in zip(lines, batches):
        images, labels = on(torch.device("cpu"), batch)
        logits = reference(images)
        parts = [nn.functional.cross_entropy(logits, labels), kl_divergence(logits, teacher(images), 3.0)]
        loss = 0.5 * parts[0] + 2 * parts[1]
        optimizer.param_groups[0]["lr"] = line["lr"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert line["losses"] == pytest.approx({"labels": parts[0].item(), "kl": parts[1].item()}, rel=1e-4)
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["lr"] == pytest.approx(0.1 * 8 / 256 * 0.5 / 5)  # half a step into a warm-up of one epoch


class Killed(Exception):
    pass


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(tmp_path):
    config = dataclasses.replace(CONFIG, ema_decay=0.9)
    data = load_data(DATA, config.seed)
    (whole,) = train_models([network()], [16], data, config, tmp_path / "whole", execution=EXECUTION)

    def stop(result):
        if result.step == 5:  # a checkpoint is there after 4
            raise Killed

    with pytest.raises(Killed):
        train_models([network()], [16], data, config, tmp_path / "parts", execution=EXECUTION, on_step=stop)
    (resumed,) = train_models([network()], [16], data, config, tmp_path / "parts", execution=EXECUTION, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


WITH_COMPANIONS = Objective(hint=1.0, vid=0.1, auxiliary=0.3, layers=(("0", "0"),), auxiliary_layers=("2",))


def test_companions_go_on_where_they_were_and_are_not_in_the_result(tmp_path):
    config = dataclasses.replace(CONFIG, ema_decay=0.9, clip=1.0)
    data, teacher = load_data(DATA, config.seed), network(6).eval()

    def trained(name, models, **options):
        return train_models(
            models,
            [16] * len(models),
            data,
            config,
            tmp_path / name,
            WITH_COMPANIONS,
            teacher,
            execution=EXECUTION,
            **options,
        )

    (whole,) = trained("whole", [network()])
    assert whole.state_dict().keys() == network().state_dict().keys()

    def stop(result):
        if result.step == 5:
            raise Killed

    with pytest.raises(Killed):
        trained("parts", [network()], on_step=stop)
    (resumed,) = trained("parts", [network()], resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    losses = metrics(tmp_path / "whole")[0]["losses"]
    assert losses.keys() == {"labels", "hint", "vid", "auxiliary"}
    of_connectors = {key for key in load_checkpoint(tmp_path / "whole" / "checkpoints")["net"] if key.startswith("1.")}
    assert {"1.0.hint.0.regressor.weight", "1.0.heads.0.classifier.bias", "1.0.vid.0.raw_variance"} <= of_connectors
    two = trained("two", [network(), network(5)])
    assert [model[0].out_channels for model in two] == [4, 5]


def test_companions_change_neither_what_a_model_begins_with_nor_its_clipping(tmp_path):
    """With weights so small that nothing of them reaches the model, it learns what it does without."""
    config = dataclasses.replace(CONFIG, epochs=1, clip=0.5)
    data, teacher = load_data(DATA, config.seed), network(6).eval()
    little = Objective(hint=1e-30, auxiliary=1e-30, layers=(("0", "0"),), auxiliary_layers=("2",))
    (alone,) = train_models([network()], [16], data, config, tmp_path / "alone", execution=SILENT)
    (beside,) = train_models([network()], [16], data, config, tmp_path / "beside", little, teacher, execution=SILENT)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(beside.state_dict()[name], tensor), name


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_checkpoint(tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e38, warmup_epochs=0)
    execution = dataclasses.replace(EXECUTION, checkpoint_steps=1)
    model = network()
    with pytest.raises(TrainingError, match=r"in step \d+ for Sequential; lower lr"):
        train_models([model], [16], load_data(DATA, config.seed), config, tmp_path, execution=execution)
    state = load_checkpoint(tmp_path / "checkpoints")["net"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A saved timm model, trained from scratch."""
    directory = tmp_path_factory.mktemp("standalone")
    options = json.dumps({"name": "mobilenetv3_small_050", "input_size": 32})
    job = ModelJob(space="timm", space_options=options, data=DATA, train=CONFIG, execution=EXECUTION)
    subnet = run_model_job(job, directory / "training")
    save_subnet(directory, subnet, onnx=False)
    return job, directory


def test_a_timm_model_is_trained_and_saved_like_a_subnet(trained):
    job, directory = trained
    model, config = load_subnet(directory)
    assert type(model) is timm.models.MobileNetV3
    timm.create_model("mobilenetv3_small_050", num_classes=10).load_state_dict(model.state_dict())
    assert config.input_size == (3, 32, 32)
    assert config.facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    last = metrics(directory / "training")[-1]
    assert last["step"] == 10
    assert 0 <= last["accuracy"] <= 1
    with pytest.raises(ValueError, match="holds a run already: add --resume"):
        run_model_job(job, directory / "training")


def test_training_goes_on_from_a_subnet_with_itself_as_the_teacher(trained, tmp_path):
    """Born again, for one step that changes nothing: agreement with oneself has no gradient."""
    job, directory = trained
    still = dataclasses.replace(
        job,
        start=str(directory),
        teacher=str(directory),
        objective=Objective(labels=0.0, kl=1.0),
        train=dataclasses.replace(CONFIG, epochs=1, lr=1e-30, warmup_epochs=0, weight_decay=0.0),
        execution=SILENT,
    )
    subnet = run_model_job(still, tmp_path / "run")
    before = load_subnet(directory).model
    for name, parameter in subnet.model.named_parameters():
        # a parameter of 0 moves by 1e-30 times its gradient, which is that of rounding errors
        torch.testing.assert_close(parameter, before.get_parameter(name), rtol=0, atol=1e-30, msg=name)


def test_a_subnet_of_other_classes_starts_with_a_fresh_classifier(trained, tmp_path):
    job, directory = trained
    fewer = {"classes": ("a", "b"), "family_arguments": {"num_classes": 2}}
    few = dataclasses.replace(load_subnet(directory).config, **fewer)
    options = json.loads(few.space_options)
    model = timm.create_model(options["name"], num_classes=2)
    save_subnet(tmp_path / "few", load_subnet(directory)._replace(model=model, config=few), onnx=False)
    frozen = dataclasses.replace(CONFIG, epochs=1, lr=1e-30, warmup_epochs=0, weight_decay=0.0)
    job = dataclasses.replace(job, start=str(tmp_path / "few"), train=frozen, execution=SILENT)
    subnet = run_model_job(job, tmp_path / "run")
    assert torch.equal(subnet.model.conv_stem.weight, model.conv_stem.weight)
    assert subnet.model.classifier.weight.shape == (10, 1024)


def started(space, options, classes, tmp_path):
    """A saved subnet for `classes`, and the model that starts from it for others."""
    family = make_family(space, options, {"num_classes": len(classes)})
    config = SubnetConfig.of(space, options, family.space.smallest, ImageData(None, None, None, classes, DataConfig()))
    subnet = Subnet(family.build(family.space.smallest), config)
    save_subnet(tmp_path / "start", subnet, onnx=False)

    def start(others):
        job = ModelJob(space, options, json.dumps(config.arch), str(tmp_path / "start"), train=CONFIG)
        family = make_family(space, options, {"num_classes": len(others)})
        return initial_model(job, family, family.space.smallest, others).state_dict()

    return subnet.model.state_dict(), start


@pytest.mark.parametrize(
    ("space", "options", "classifier"),
    [
        ("timm", '{"name": "test_resnet", "input_size": 32}', ("fc.weight", "fc.bias")),
        ("from_timm", '{"name": "test_resnet", "input_size": 32}', ("fc.weight", "fc.bias")),
        ("mobilenet_v3_micro", "{}", ("classifier.weight", "classifier.bias")),
    ],
)
def test_classes_are_compared_by_name_and_order(tmp_path, space, options, classifier):
    before, start = started(space, options, ("cat", "dog", "owl"), tmp_path)
    kept, reordered = start(("cat", "dog", "owl")), start(("owl", "cat", "dog"))
    others, more = start(("car", "bus", "van")), start(("cat", "dog", "owl", "bee"))
    for name, tensor in before.items():
        assert torch.equal(kept[name], tensor)
        assert torch.equal(reordered[name], tensor[[2, 0, 1]] if name in classifier else tensor)
        if name not in classifier or tensor.any():  # a bias may start at 0
            assert torch.equal(others[name], tensor) == (name not in classifier)
        assert (name in classifier) == (more[name].shape != tensor.shape)


def test_peers_and_augmented_models_start_from_subnets_by_the_names_of_classes_too(tmp_path):
    before, _ = started("timm", '{"name": "test_resnet", "input_size": 32}', tuple("9876543210"), tmp_path)
    subnet = str(tmp_path / "start")
    options = '{"name": "test_resnet", "input_size": 32}'
    job = ModelJob("timm", options, None, subnet, peers=(subnet,), data=DATA, objective=Objective(mutual=1.0))
    for trainee in prepare_job(job, tmp_path / "run", resume=False).trainees:
        assert torch.equal(trainee.model.fc.weight, before["fc.weight"].flip(0))
    job = NetAugJob("timm", options, None, subnet, data=DATA)
    (trainee,) = prepare_job(job, tmp_path / "augmented", resume=False).trainees
    assert torch.equal(trainee.model.fc.weight, before["fc.weight"].flip(0))


def test_a_pretrained_classifier_is_kept_for_its_own_classes_alone(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    save_for_hf(model, tmp_path, {"label_names": ["cat", "dog"]}, safe_serialization=True)
    options = json.dumps({"name": f"local-dir:{tmp_path}", "pretrained": True, "input_size": 32})
    job = ModelJob("timm", options, start="pretrained", train=CONFIG)
    for classes, is_kept in ((("cat", "dog"), True), (("dog", "cat"), False), (("car", "bus"), False)):
        family = make_family("timm", options, {"num_classes": 2})
        found = initial_model(job, family, family.space.largest, classes)
        assert torch.equal(found.conv1[0].weight, model.conv1[0].weight)
        assert torch.equal(found.fc.weight, model.fc.weight) == is_kept


def test_a_model_is_saved_without_the_folder_that_it_came_from(tmp_path):
    source = tmp_path / "source"
    save_for_hf(timm.create_model("test_resnet", num_classes=10), source, safe_serialization=True)
    job = ModelJob("timm", json.dumps({"name": f"local-dir:{source}", "input_size": 32}), data=DATA)
    data, (trainee,) = prepare_job(job, tmp_path / "run", resume=False)[:2]
    shutil.rmtree(source)  # while it trains
    config = SubnetConfig.of(trainee.job.space, trainee.job.space_options, trainee.arch, data)
    save_subnet(tmp_path / "model", Subnet(trainee.model, config), onnx=False)
    load_subnet(tmp_path / "model")


def test_a_teacher_gets_images_as_data_of_ones_own_normalise_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from supernet.training.data import DataConfig, open_images\n\n\n"
        "def images():\n    return open_images(DataConfig(mean=(0.3,) * 3, std=(0.2,) * 3))\n"
    )
    job = dataclasses.replace(MICRO, arch=None, data=DataConfig("own.py:images"))
    data, [student], *_ = prepare_job(job, tmp_path / "run", resume=False)
    config = SubnetConfig.of(job.space, job.space_options, student.arch, data)
    save_subnet(tmp_path / "teacher", Subnet(student.model.eval(), config), onnx=False)
    taught = dataclasses.replace(job, teacher=str(tmp_path / "teacher"), objective=Objective(kl=1.0))
    teacher = prepare_job(taught, tmp_path / "run", resume=False).teacher
    images = torch.randn(2, *config.input_size)
    assert torch.equal(teacher(images), student.model(images))  # which the teacher was trained on too


def test_weights_of_another_network_are_refused(trained, tmp_path):
    job, directory = trained
    job = dataclasses.replace(job, space_options='{"name": "resnet10t", "input_size": 32}', start=str(directory))
    with pytest.raises(ValueError, match=r"does not fit ResNet: its tensor 'bn1\.weight' is \[16\], not \[64\]"):
        run_model_job(job, tmp_path / "run")


def test_a_teacher_and_the_losses_that_need_one_go_together():
    with pytest.raises(ValueError, match="need a teacher"):
        ModelJob(objective=Objective(kl=1.0))
    with pytest.raises(ValueError, match="a teacher needs one of them"):
        ModelJob(teacher="resnet18")


def test_a_cohort_takes_the_steps_that_each_network_would_by_itself(tmp_path):
    """An optimizer each, and a limit of the gradient, which here one of them never reaches and the other does."""
    config = dataclasses.replace(CONFIG, epochs=1, lr=4.0, weight_decay=0.0, label_smoothing=0.0, clip=1.2)
    networks, references = ([network(4).train(), network(6).train()] for _ in range(2))
    for model in networks + references:
        model[3].p = 0.0
    data = load_data(DATA, config.seed)
    execution = dataclasses.replace(EXECUTION, eval_images=256)
    train_models(networks, [16, 12], data, config, tmp_path, Objective(mutual=2.0), execution=execution)

    optimizers = [torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True) for model in references]
    norms = [[], []]
    for line, batch in zip(metrics(tmp_path), data.training_batches(16, 8, config.seed, range(5))):
        images, labels = on(torch.device("cpu"), batch)
        logits = [references[0](images), references[1](resize(images, 12))]
        parts = [nn.functional.cross_entropy(own, labels) for own in logits]
        mutual = [
            (peer.softmax(1) * (peer.log_softmax(1) - own.log_softmax(1))).sum(1).mean()
            for own, peer in ((logits[0], logits[1].detach()), (logits[1], logits[0].detach()))
        ]
        for model, optimizer, part, taught, found in zip(references, optimizers, parts, mutual, norms):
            optimizer.param_groups[0]["lr"] = line["lr"]
            optimizer.zero_grad()
            (part + 2 * taught).backward()
            found.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip).item())
        for optimizer in optimizers:
            optimizer.step()
        assert line["losses"]["labels"] == pytest.approx([part.item() for part in parts], rel=1e-4)
        assert line["losses"]["mutual"] == pytest.approx(sum(mutual).item(), rel=1e-3)
        assert line["loss"] == pytest.approx((sum(parts) + 2 * sum(mutual)).item(), rel=1e-4)
    assert max(norms[0]) < config.clip < max(norms[1])
    assert metrics(tmp_path)[-1]["accuracy"] == [
        accuracy(model, zip(*([part] for part in data.images(data.holdout, size, 256))))
        for model, size in zip(networks, (16, 12))
    ]
    for model, reference in zip(networks, references):
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_cohort_that_is_stopped_and_resumed_ends_in_the_same_weights(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, ema_decay=0.9, drop_rate=0.2)
    peers = ("test_resnet", "test_resnet")
    job = dataclasses.replace(
        MICRO, arch=None, train=config, execution=SILENT, peers=peers, objective=Objective(mutual=1.0)
    )
    own = run_model_job(job, tmp_path / "whole")

    def stop(result):
        if result.step == 3:  # a checkpoint is there after 2
            raise Killed

    with pytest.raises(Killed):
        run_model_job(job, tmp_path / "parts", on_step=stop)
    assert not (tmp_path / "parts" / "peers").exists()
    again = read_model_job(tmp_path / "parts")
    assert again == job
    resumed = run_model_job(again, tmp_path / "parts", resume=True)
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    files = [f"peers/{index}-test_resnet/model.safetensors" for index in (1, 2)]
    for name in ("metrics.jsonl", *files):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    first, second = (load_subnet((tmp_path / "whole" / name).parent) for name in files)
    assert first.config.arch == second.config.arch == {"resolution": 32}
    assert not torch.equal(first.model.fc.weight, second.model.fc.weight)


def test_peers_start_from_weights_as_the_model_does(trained):
    folder = str(trained[1])
    mutual = Objective(mutual=1.0)
    job = dataclasses.replace(MICRO, peers=(folder, "resnet10t"), objective=mutual)
    assert [(peer.space, peer.start, peer.train.seed) for peer in peer_jobs(job, 24)] == [
        ("timm", "scratch", part_seed(3, Stream.PEER, 1)), ("timm", "scratch", part_seed(3, Stream.PEER, 2)),
    ]  # fmt: skip
    assert json.loads(peer_jobs(job, 24)[1].space_options) == {"name": "resnet10t", "input_size": 24}
    tuned = dataclasses.replace(job, start="subnets/mine")
    assert [peer.start for peer in peer_jobs(tuned, 24)] == [folder, "scratch"]


def test_what_must_not_decay_does_not_in_a_cohort():
    with torch.device("meta"):
        transformer = timm.create_model("test_vit", num_classes=10)
    cohort = Cohort([network(), transformer])
    assert {"1.pos_embed", "1.cls_token"} <= cohort.no_weight_decay()
    optimizer, _ = make_optimizer(cohort, dataclasses.replace(CONFIG, weight_decay=0.1), 5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(transformer.pos_embed)] == 0
    assert decays[id(transformer.patch_embed.proj.weight)] == decays[id(cohort[0][0].weight)] == 0.1


def test_peers_and_the_loss_by_them_go_together(tmp_path):
    with pytest.raises(ValueError, match=r"the loss mutual needs peers.* the peers are none, the weight is 1\.0"):
        ModelJob(objective=Objective(mutual=1.0))
    with pytest.raises(ValueError, match=r"peers need a weight of it: the peers are resnet18, the weight is 0\.0"):
        ModelJob(peers=("resnet18",))
    job = dataclasses.replace(MICRO, arch=None, peers=("resnet19",), objective=Objective(mutual=1.0))
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        run_model_job(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_supernets_settings_hold_for_a_model():
    settings = model_settings(digits().train)
    assert type(settings) is LoopConfig
    assert (settings.epochs, settings.lr, settings.ema_decay) == (36, 0.4, 0.99)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    data = load_data(DATA, CONFIG.seed)
    few = dataclasses.replace(data, classes=data.classes[:3])
    with pytest.raises(ValueError, match=r"labels are \d to 9, but there are 3 classes"):
        train_models([network()], [16], few, dataclasses.replace(CONFIG, batch_size=43), tmp_path, execution=EXECUTION)


def test_a_compiled_model_trains_to_the_same_weights(tmp_path, monkeypatch):
    compiled, torch_compile = [], torch.compile

    def trace_only(model, **options):
        compiled.append(model)
        return torch_compile(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", trace_only)
    data, config = load_data(DATA, CONFIG.seed), dataclasses.replace(CONFIG, epochs=1, ema_decay=0.5)
    (plain,) = train_models([network()], [16], data, config, tmp_path / "plain", execution=SILENT)
    fast = dataclasses.replace(SILENT, step="compile")
    (found,) = train_models([network()], [16], data, config, tmp_path / "fast", execution=fast)
    assert len(compiled) == 1
    for name, tensor in plain.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_compiled_model_shows_no_features():
    with pytest.raises(ValueError, match="a compiled model does not show its features to attention"):
        ModelJob(teacher="resnet18", objective=Objective(attention=1.0), execution=Execution(step="compile"))
