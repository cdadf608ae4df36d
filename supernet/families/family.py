"""What a named search space comes with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from supernet.costs import count_macs, count_parameters
from supernet.plain import inputs_like
from supernet.skeleton import build_skeleton, without_data
from supernet.slicing import Rule
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.views import Views, no_views, tied_builder

if TYPE_CHECKING:
    from supernet.training.data import Data

ORDERING_EXAMPLES = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A search space, the builder of its plain modules, and what follows from an architecture without building it.

    `build(arch, drop_rate=0.0, drop_path_rate=0.0)` gives the plain module; the rates (of dropout before the
    classifier and of stochastic depth) add no tensors, and are passed where they are not 0. Tensors that are equal
    `views` of one source are tied in that module, so that it has each parameter once. `task` says what the modules
    learn: to tell `num_classes` classes of images apart, if nothing is said. `inputs(arch)` are tensors on the meta
    device that `build(arch)` may be called with, for one example: an image at `resolution(arch)`, likewise.

    `macs(arch)` counts the multiply-accumulates of convolutions and matrix products for one example,
    `parameters(arch)` the parameters, trainable or frozen:
    both exactly what `supernet.costs` counts in the module that `build` makes. Where they are not given, that is
    how they are found, which takes tens of milliseconds an architecture.

    `weights()` loads pretrained ones of the largest subnet; tensors that other subnets alone have start as without.
    Where `weights_classes` is given, it also takes
    `classifier=False`, which lets the classifier start anew, and `weights_classes(classes)` gives the names of the
    classes that theirs tells apart: `classes` itself if it is these, None if nothing says.
    """

    space: SearchSpace
    build: Callable[..., nn.Module]
    num_classes: int | None = None
    in_chans: int = 3
    input_size: int | None = None  # pixels a side, in a space without the choice `resolution`
    macs: Callable[[Arch], int] = None  # type: ignore[assignment]  # counted where it is not given
    parameters: Callable[[Arch], int] = None  # type: ignore[assignment]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    paper: str = ""
    pieces: Callable[[Arch], Mapping[str, Hashable]] | None = None  # what `Supernet` may build once and use again
    views: Views = no_views  # an architecture's tensors that are no mere slices, see `supernet.views`
    weights: Callable[..., Mapping[str, Tensor]] | None = None  # loads the largest subnet's, to start from
    weights_classes: Callable[[Sequence[str]], tuple[str, ...] | None] | None = None  # that `weights` tell apart
    order: Callable[[Supernet, Iterable[tuple]], object] | None = None  # sorts pretrained channels by what inputs show
    task: Task = None  # type: ignore[assignment]  # Classification where it is not given
    inputs: Callable[[Arch], tuple] | None = None
    counts: Mapping[str, Callable[[Arch], float]] = field(default_factory=dict)  # further costs, see `search.counts`

    def __post_init__(self):
        if self.inputs is None and self.input_size is None and "resolution" not in self.space.choices:
            raise ValueError("say the images' input_size in pixels, or make `resolution` a choice of the space")
        object.__setattr__(self, "build", tied_builder(self.build, self.views))
        if self.task is None:
            if self.num_classes is None:
                raise ValueError("say the num_classes that the images are of, or another task")
            object.__setattr__(self, "task", Classification(self.num_classes, self.in_chans))
        if self.macs is None:
            object.__setattr__(self, "macs", self._count_macs)
        if self.parameters is None:
            object.__setattr__(self, "parameters", self._count_parameters)

    def _count_macs(self, arch: Arch) -> int:
        return count_macs(build_skeleton(self.build, arch), self.example(arch))

    def _count_parameters(self, arch: Arch) -> int:
        return count_parameters(build_skeleton(self.build, arch))

    def resolution(self, arch: Arch) -> int | None:
        """Height and width in pixels of the images that `arch` is meant for; None where inputs have no such size."""
        return arch.get("resolution", self.input_size)

    def example(self, arch: Arch) -> tuple:
        """What `arch` may be called with, for one example: tensors on the meta device, of which shapes and types alone
        matter, for tracing, counting, checks and export."""
        if self.inputs is not None:
            return self.inputs(arch)
        size = self.resolution(arch)
        return (torch.empty(1, self.in_chans, size, size, device="meta"),)

    def supernet(
        self,
        seed: int = 0,
        *,
        pretrained: bool = True,
        classes: Sequence[str] | None = None,
        data: Data | None = None,
    ) -> Supernet:
        """A supernet of this family, with its pretrained weights if it has any, or else initialised from `seed`.

        With `pretrained` false they are not loaded, for a supernet whose weights come from elsewhere. `classes` are the
        names of those that it is to tell apart: a pretrained classifier that is known to be for others, however many,
        starts anew. A family with an `order` wants the `data` whose training examples the channels of its pretrained
        weights are sorted by.

        ValueError if these are missing, or if its subnets do not nest, do not run on the inputs of this family, or give
        in training what its task does not understand.
        """
        example = self.example(self.space.largest)
        net = Supernet(
            self.space, self.build, self.rules, seed=seed, example=self.example, pieces=self.pieces, views=self.views
        )
        self.task.check_output(without_data(net.skeleton(self.space.largest), partial(_output_in_training, example)))
        if pretrained and self.weights is not None:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)  # a classifier that starts anew
                found = self.weights(**self._classifier(classes))
            used = set(net.sources(self.space.largest).values())
            others = {name: tensor for name, tensor in net.state_dict().items() if name not in used}
            net.load_state_dict(others | dict(found))
            net.statistics_of = self.space.largest
            if self.order is not None:
                self.order(net, self.ordering_inputs(data, seed))
        return net

    def ordering_inputs(self, data: Data | None, seed: int) -> list[tuple]:
        """What the largest subnet is called with to sort its channels: some training examples of `data`, always the
        same for one seed. ValueError without data."""
        if data is None:
            raise ValueError(
                "the channels of this family are sorted by training examples: say whose (data=), or sort them by "
                "another importance"
            )
        largest = self.space.largest
        batches = data.calibration_batches(self.resolution(largest), ORDERING_EXAMPLES, seed)
        return [self.task.inputs(batch, largest) for batch in batches]

    def _classifier(self, classes: Sequence[str] | None) -> dict[str, bool]:
        """The argument of `weights` that lets a classifier for other classes start anew."""
        if classes is None or self.weights_classes is None:
            return {}
        known = self.weights_classes(classes)
        if known is None:
            logger.warning(
                "the pretrained classifier, if it has as many classes, is taken to be for the classes of these images"
            )
            return {}
        if known == tuple(classes):
            return {}
        if len(known) == len(classes):
            logger.warning("the pretrained classifier tells other classes apart (%s, ...): it starts anew", known[0])
        return {"classifier": False}


def _output_in_training(example: tuple, module: nn.Module, device: torch.device) -> object:
    """Of two examples like `example`; some models give more in train mode than in eval mode."""
    return module.train()(*inputs_like(example, module, device, count=2))


class Description(NamedTuple):
    """What there is to say of a family in a line."""

    name: str
    size: int  # architectures
    macs: tuple[int, int]  # fewest, most
    parameters: tuple[int, int]  # fewest, most
    paper: str


def describe(name: str, family: Family) -> Description:
    """The size of a family's space, and the range of its costs.

    A cost grows with every ordered choice. Of the unordered ones, each is taken to have its cheapest and its dearest
    value whatever the others are, as in spaces whose costs are sums over layers.
    """
    return Description(
        name,
        family.space.size,
        _range(family.space, family.macs),
        _range(family.space, family.parameters),
        family.paper,
    )


def _range(space: SearchSpace, cost: Callable[[Arch], int]) -> tuple[int, int]:
    ends = []
    for index, pick in ((0, min), (-1, max)):
        values = {name: choice.values[index] for name, choice in space.choices.items()}
        for name, choice in space.choices.items():
            if not choice.ordered:
                costs = {value: cost(space.validate({**values, name: value})) for value in choice.values}
                values[name] = pick(costs, key=costs.__getitem__)
        ends.append(cost(space.validate(values)))
    return ends[0], ends[1]
