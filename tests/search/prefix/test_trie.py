"""The trie against the naive loop: extract, calibrate, run, one by one."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from search.prefix import trie
from search.prefix.dependence import chains, told
from search.prefix.pieces import cut
from search.scores.accuracy import SupernetAccuracy, first_metric, resized
from supernet import SearchSpace, Supernet
from supernet.activation_memory import examples_within
from supernet.calibration import calibrate
from supernet.evaluation import calibrated
from supernet.families import FAMILIES, from_model
from supernet.tasks import Classification


def population(space, count, generator):
    archs = [space.sample(generator) for _ in range(count // 3)]
    while len(archs) < count:
        archs.append(space.mutate(archs[generator.integers(len(archs))], generator, 0.1))
    return archs


def images(resolution, count=12, batch_size=5):
    draw = torch.Generator().manual_seed(resolution)
    calibration, evaluation = torch.randn(2, count, 3, resolution, resolution, generator=draw)
    return trie.Batches(list(calibration.split(batch_size)), list(evaluation.split(batch_size)))


def naive(net, arch, batches):
    model = net.extract(arch).eval()
    calibrate(model, batches.calibration)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches.evaluation])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_logits_are_those_of_the_naive_loop(memory_format):
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    net = family.supernet().to(memory_format=memory_format)
    archs = population(family.space, 12, np.random.default_rng(0))
    logits = dict(trie.outputs(net, archs, images, family.resolution))
    assert sorted(logits) == list(range(12))
    for index, arch in enumerate(archs):
        assert torch.equal(logits[index], naive(net, arch, images(family.resolution(arch))))


def test_pieces_of_others_are_put_together_once_many_were_cut(monkeypatch):
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    net, alone, remembered = family.supernet(), [], trie.Remembered(0)
    monkeypatch.setattr(trie, "MANY", 4)
    monkeypatch.setattr(trie, "cut", lambda *arguments: alone.append(1) or cut(*arguments))
    archs = population(family.space, 12, np.random.default_rng(2))
    logits = dict(trie.outputs(net, archs, images, family.resolution, remembered))
    assert len(alone) == 3
    for index, arch in enumerate(archs[3:], start=3):
        assert torch.equal(logits[index], naive(net, arch, images(family.resolution(arch))))
    remembered.clear()
    dict(trie.outputs(net, archs[:3], images, family.resolution, remembered))
    assert len(alone) == 6


def test_only_what_a_family_tells_is_put_together():
    assert told(FAMILIES["nasbench_macro"](num_classes=10).supernet()) is None
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    net = family.supernet()
    net.pieces_of = lambda arch: dict.fromkeys(family.pieces(arch))  # as if they were the same in all subnets
    assert told(net) is None


def test_weights_are_lent_and_the_supernet_stays_as_it_is():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    net = family.supernet()
    before = copy.deepcopy(net.state_dict())
    archs = [family.space.smallest, family.space.largest]
    dict(trie.outputs(net, archs, images, family.resolution))
    for arch in archs:
        assert all(tensor.is_meta for tensor in net.skeleton(arch).state_dict().values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["nasbench_macro", "nasbench201", "ofa_resnet50", pytest.param("autoformer_tiny", marks=pytest.mark.exhaustive)],
)
def test_other_families_share_and_agree(name):
    family = FAMILIES[name](num_classes=10)
    size = {"ofa_resnet50": 64, "autoformer_tiny": 224}.get(name, 32)
    net = family.supernet()
    generator = np.random.default_rng(1)
    base = family.space.smallest
    archs = [base, *(family.space.mutate(base, generator, 0.05) for _ in range(2))]
    batches = images(size, count=3, batch_size=2)
    logits = dict(trie.outputs(net, archs, lambda resolution: batches, lambda arch: size))
    for index, arch in enumerate(archs):
        assert torch.equal(logits[index], naive(net, arch, batches))
    first, again = (cut(net.extract(base).eval()) for _ in range(2))
    assert len(first) > 5
    assert [piece.key for piece in first] == [piece.key for piece in again]


def count_calls(monkeypatch):
    """The shape of a convolution's weight whenever one runs on images."""
    calls = []
    forward = nn.Conv2d.forward

    def counted(self, x):
        if not x.is_meta:
            calls.append(tuple(self.weight.shape))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    return calls


def test_shared_layers_run_once(monkeypatch):
    space = SearchSpace({"width": (1, 2, 3)})

    def build(arch):
        return nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, arch["width"], 1))

    net = Supernet(space, build)
    archs = space.decode(np.array([[0], [1], [2]]))
    calls = count_calls(monkeypatch)
    dict(trie.outputs(net, archs, lambda _: images(4, batch_size=12), lambda arch: 4))
    assert calls.count((5, 3, 1, 1)) == calls.count((4, 5, 1, 1)) == 1
    assert [calls.count((width, 4, 1, 1)) for width in (1, 2, 3)] == [1, 1, 1]


class ActivationFirst(nn.Module):
    """Begins with an operation in place, as pre-activation networks do."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(4, width, 1)

    def forward(self, x):
        return self.conv(nn.functional.hardswish(x, inplace=True))


def test_operations_in_place_do_not_disturb_others():
    space = SearchSpace({"width": (1, 2, 3)})
    net = Supernet(space, lambda arch: nn.Sequential(nn.Conv2d(3, 4, 1), ActivationFirst(arch["width"])))
    archs = space.decode(np.array([[0], [1], [2]]))
    logits = dict(trie.outputs(net, archs, lambda _: images(4), lambda arch: 4))
    for index, arch in enumerate(archs):
        assert torch.equal(logits[index], naive(net, arch, images(4)))


class DependsOnData(nn.Module):
    """Cannot be traced, so it is a piece as a whole."""

    def __init__(self, width):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, width, 1)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.second(x if x.mean() > 0 else -x)


def test_what_cannot_be_traced_runs_as_a_whole():
    space = SearchSpace({"width": (1, 2)})
    net = Supernet(space, lambda arch: DependsOnData(arch["width"]))
    archs = [space.smallest, space.largest]
    assert len(cut(net.extract(archs[0]).eval())) == 1
    logits = dict(trie.outputs(net, archs, lambda _: images(4), lambda arch: 4))
    for index, arch in enumerate(archs):
        assert torch.equal(logits[index], naive(net, arch, images(4)))


def test_pieces_differ_where_structure_differs_but_tensors_do_not():
    def key(stride, slope):
        return cut(nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride), nn.LeakyReLU(slope)).eval())

    base, strided, sloped = key(1, 0.1), key(2, 0.1), key(1, 0.2)
    assert base[0].key != strided[0].key
    assert base[1].key == strided[1].key
    assert base[0].key == sloped[0].key
    assert base[1].key != sloped[1].key


class FailsWide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)

    def forward(self, x):
        if self.conv.out_channels == 2:
            raise RuntimeError("too wide")
        return self.conv(x).mean((2, 3))


def test_a_subnet_that_fails_fails_alone():
    space = SearchSpace({"width": (1, 2, 3)})
    net = Supernet(space, lambda arch: FailsWide(arch["width"]))
    archs = space.decode(np.array([[0], [1], [2]]))
    nothing = torch.zeros(4, 3, 2, 2)
    score = SupernetAccuracy(net, resized(nothing, nothing, torch.zeros(4).long()), lambda arch: 2)
    results = dict(score.each(archs))
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[0], float)
    assert isinstance(results[2], float)
    with pytest.raises(RuntimeError, match="too wide"):
        score(archs)


def test_accuracy_counts_right_answers():
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    batch = (None, torch.tensor([1, 0, 0, 0]))
    assert first_metric(Classification(), logits, batch) == 0.75
    assert np.isnan(first_metric(Classification(), logits / 0 * 0, batch))


@pytest.mark.exhaustive  # other networks are remembered, too
def test_what_is_remembered_changes_nothing_and_is_forgotten_with_the_weights(monkeypatch):
    family = FAMILIES["nasbench_macro"](num_classes=10)
    net = family.supernet()
    draw = torch.Generator().manual_seed(0)
    calibration, evaluation = torch.randn(2, 6, 3, 8, 8, generator=draw)
    at = resized(calibration, evaluation, torch.randint(10, (6,), generator=draw))
    generator = np.random.default_rng(0)
    first = population(family.space, 9, generator)
    second = [family.space.mutate(arch, generator, 0.1) for arch in first]

    def score(memory_bytes=2**30):
        return SupernetAccuracy(net, at, lambda arch: 8, batch_size=4, memory_bytes=memory_bytes)

    calls = count_calls(monkeypatch)
    alone = [dict(enumerate(score(memory)(archs))) for memory in (0, 20_000) for archs in (first, second)]
    assert alone[:2] == alone[2:]
    calls.clear()
    kept = score()
    assert dict(enumerate(kept(first))) == alone[0]
    calls.clear()
    assert dict(enumerate(kept(second))) == alone[1]
    assert (32, 3, 3, 3) not in calls  # the stem
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05)
    assert kept(second) == score(0)(second)


@pytest.mark.parametrize("memory_bytes", [0, 20_000, 2**30])
def test_a_subnet_is_calibrated_once_for_several_looks_at_the_images_that_judge(memory_bytes, monkeypatch):
    net = Supernet(SearchSpace({"first": (2, 3, 4), "second": (2, 3)}), normalised)
    archs = list(net.space)
    whole, remembered = images(8), trie.Remembered(memory_bytes)
    expected = [naive(net, arch, whole) for arch in archs]

    def outputs(own, look):
        part = trie.Batches(whole.calibration, whole.evaluation[look : look + 1])
        return dict(trie.outputs(net, own, lambda _: part, lambda arch: 8, remembered, judges=look))

    def look_at(own, look):
        for arch, logits in sorted(outputs(own, look).items()):
            assert torch.equal(logits, expected[archs.index(own[arch])][5 * look : 5 * look + 5])

    look_at(archs[:5], 0)
    with monkeypatch.context() as patched:
        patched.setattr(trie, "calibrate", None)
        look_at(archs[1:4], 1)
        look_at(archs[:5], 0)
    look_at(archs[2:], 2)
    look_at(archs, 1)


def test_remembered_batches_are_not_written_to():
    space = SearchSpace({"width": (1, 2, 3), "more": (1, 2)})

    def build(arch):
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), ActivationFirst(arch["width"]), nn.Conv2d(arch["width"], arch["more"], 1)
        )

    net = Supernet(space, build)
    archs = [space.decode(np.array([[i, j]]))[0] for i in range(3) for j in range(2)]
    remembered = trie.Remembered(2**20)
    for population in (archs[:4], archs[3:], archs):
        logits = dict(trie.outputs(net, population, lambda _: images(4), lambda arch: 4, remembered))
        for index, arch in enumerate(population):
            assert torch.equal(logits[index], naive(net, arch, images(4)))


@pytest.mark.parametrize("memory_bytes", [pytest.param(0, marks=pytest.mark.exhaustive), 2**30])
def test_subnets_of_a_pretrained_network_are_corrected_as_in_extraction(memory_bytes):
    def create():
        return timm.create_model("mobilenetv3_small_050", num_classes=10)

    def published():
        model = create()
        calibrate(model, [torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))])
        return model

    family = from_model(create, torch.empty(1, 3, 32, 32, device="meta"), pretrained=published)
    net = family.supernet()
    archs = [*population(family.space, 6, np.random.default_rng(0)), family.space.largest]
    batches = images(32)
    remembered = trie.Remembered(memory_bytes)
    for some in (archs[:4], archs):
        logits = dict(trie.outputs(net, some, lambda size: batches, family.resolution, remembered))
        assert sorted(logits) == list(range(len(some)))
        for index, arch in enumerate(some):
            model = calibrated(net, arch, batches.calibration)
            with torch.inference_mode():
                assert torch.equal(logits[index], torch.cat([model(batch) for batch in batches.evaluation]))
    assert not torch.equal(logits[0], naive(net, archs[0], batches))  # it is something that was done


def normalised(arch):
    first, second = arch["first"], arch["second"]
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 3), nn.BatchNorm2d(second), nn.ReLU()),
        *(nn.Conv2d(second, 5, 3), nn.Flatten()),
    )


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("count", [5, 14])  # 14 hold the images that calibrate, or those that judge, but not both
def test_images_that_do_not_fit_in_memory_run_in_shares(count, pretrained, monkeypatch):
    monkeypatch.setattr("supernet.evaluation.FEWEST", 2)
    monkeypatch.setattr(trie, "GROUP", 3)
    net = Supernet(SearchSpace({"first": (2, 3), "second": (2, 3, 4)}), normalised)
    if pretrained:  # as far as what is done follows from it
        net.statistics_of = net.space.largest
    batches = images(9)
    each = 10**9 / examples_within(net, batches.evaluation[0], 10**9)
    budget = round(count * each) + 1
    archs = list(net.space)
    together = []
    run = trie._outputs
    monkeypatch.setattr(trie, "_outputs", lambda model, some: together.append(sum(map(len, some))) or run(model, some))
    found = dict(trie.outputs(net, archs, lambda _: batches, lambda arch: 9, calibration_bytes=budget))
    assert sorted(found) == list(range(6))
    assert max(together) <= count
    for index, arch in enumerate(archs):
        model = calibrated(net, arch, batches.calibration, budget)
        with torch.inference_mode():
            assert torch.equal(found[index], torch.cat([model(batch) for batch in batches.evaluation]))
    exact = calibrated(net, archs[0], batches.calibration).state_dict()
    pooled = calibrated(net, archs[0], batches.calibration, budget).state_dict()
    assert all(torch.equal(exact[name], pooled[name]) for name in exact) == (count == 14)


def test_in_shares_a_subnet_that_fails_fails_alone(monkeypatch):
    space = SearchSpace({"width": (1, 2, 3)})
    net = Supernet(space, lambda arch: FailsWide(arch["width"]))
    found = dict(
        trie.outputs(net, space.decode(np.array([[0], [1], [2]])), images, lambda arch: 8, calibration_bytes=1)
    )
    assert isinstance(found[1], RuntimeError)
    assert found[0].shape == (12, 1)
    assert found[2].shape == (12, 3)


class TwoOutputs(nn.Module):
    def __init__(self, width, unused=False):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1), nn.Conv2d(width, 3, 1)
        self.unused = unused

    def forward(self, x):
        x = self.stem(x)
        first, second = self.first(x), self.second(x)
        return first if self.unused else {"first": first, "second": second}


@pytest.mark.parametrize("unused", [False, True])
def test_a_network_of_several_outputs_is_a_single_piece(unused):
    net = Supernet(SearchSpace({"width": (2, 4)}), lambda arch: TwoOutputs(arch["width"], unused)).eval()
    archs = list(net.space)
    found = dict(trie.outputs(net, archs, images, lambda arch: 8))
    whole = torch.cat(images(8).evaluation)
    for index, arch in enumerate(archs):
        assert len(cut(net.extract(arch))) == 1
        expected = net(whole, arch)
        if unused:
            torch.testing.assert_close(found[index], expected)
        else:
            assert found[index].keys() == expected.keys()
            torch.testing.assert_close(dict(found[index]), expected)


class Masked(nn.Module):
    """Of a mask it makes a column, by functions alone, which both blocks and the mean use."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, size, padding="same") for size in (1, kernel_size))
        self.bn = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens, mask):
        column = mask[:, None, :].float()
        x = self.embedding(tokens).transpose(1, 2)
        for block in self.blocks:
            x = (block(x) * column).relu()
        x = self.bn(x)
        return self.head((x * column).sum(2) / column.sum(2))


def test_further_inputs_go_along():
    """Pieces of two blocks, each of which makes the column of the mask again; subnets share the first."""
    space = SearchSpace({"kernel_size": (1, 3, 5)})
    net = Supernet(space, lambda arch: Masked(4, arch["kernel_size"])).eval()
    pieces = cut(net.skeleton(space.largest), inputs=2)
    assert [[type(layer) for layer in piece.layers] for piece in pieces] == [
        [nn.Embedding],
        [],
        [nn.Conv1d],
        [],
        [],
        [nn.Conv1d],
        [],
        [],
        [nn.BatchNorm1d],
        [],
        [],
        [],
        [nn.Linear],
    ]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (12, 6), generator=generator)
    mask = (torch.arange(6) < torch.arange(2, 14)[:, None] % 5 + 1).long()
    batches = trie.Batches(*(list(zip(tokens[part].split(3), mask[part].split(3))) for part in (slice(6), slice(12))))
    archs = list(space)
    for limit in (2**33, 1):  # all at once, and in shares
        found = dict(trie.outputs(net, archs, lambda _: batches, lambda arch: 0, calibration_bytes=limit))
        for index, arch in enumerate(archs):
            model = calibrated(net, arch, batches.calibration, limit)
            with torch.no_grad():
                torch.testing.assert_close(found[index], model(tokens, mask), rtol=1e-5, atol=1e-6)
    assert chains(net, inputs=2)(archs[1])[-1].key == pieces[-1].key
