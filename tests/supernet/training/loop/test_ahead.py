"""Without a GPU: a lane that notes in which order things are begun, waited for and used."""

import dataclasses
import itertools
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from supernet.tasks import Classification
from supernet.training.data.pixels import Pixels
from supernet.training.data.protocol import Data
from supernet.training.execution import Execution
from supernet.training.loop import Loop
from supernet.training.loop.ahead import OnItsWay, ahead, lane_of
from supernet.training.loop.config import LoopConfig

EXECUTION = Execution("cpu", eval_epochs=0, log_steps=1)
CONFIG = LoopConfig(epochs=2, batch_size=4, lr=0.1)


class NotedLane:
    """Work is done at once, and noted."""

    def __init__(self, notes):
        self.notes, self.numbers, self.is_inside = notes, itertools.count(), False

    def begin(self, work):
        number = next(self.numbers)
        self.notes.append(f"begin {number}")
        self.is_inside = True
        try:
            return OnItsWay(work(), number)
        finally:
            self.is_inside = False

    def wait(self, coming):
        self.notes.append(f"wait {coming.event}")


class Noted(Data):
    """Three batches an epoch, of which the fifth of all may be bad; each is noted when it is loaded."""

    def __init__(self, notes, lane=None, last="good"):
        self.notes, self.lane, self.last = notes, lane, last

    def steps_per_epoch(self, batch_size):
        return 3

    def training_batches(self, resolution, batch_size, seed, steps, rank=0, world_size=1):
        for step in itertools.count(steps.start):  # more than are asked for
            assert step in steps, "no more are needed"
            assert self.lane is None or self.lane.is_inside, "what data do on the device belongs in the lane"
            self.notes.append(f"load {step}")
            if step == 4 and self.last == "broken":
                raise ValueError("image 16 is broken")
            if step == 4 and self.last == "missing":
                return
            generator = torch.Generator().manual_seed(step)
            pixels = torch.randint(256, (batch_size, 3, 8, 8), dtype=torch.uint8, generator=generator)
            labels = torch.randint(2, (batch_size,), generator=generator)
            yield Pixels(pixels, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), labels + 7 * (step == 4 and self.last == "unknown")

    def calibration_batches(self, resolution, count, seed): ...
    def evaluation_batches(self, part, resolution, batch_size=256): ...
    def count(self, part): ...
    def description(self): ...


def trained(directory, data, notes, resume=False):
    """The parameters after all steps, or the error that ended them."""
    directory.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    execution = dataclasses.replace(EXECUTION, checkpoint_steps=2)
    task = Classification(2, in_chans=3)
    loop = Loop(net, data, CONFIG, directory, lambda net: {}, execution, task=task, resume=resume)
    try:
        for step, batch in loop.batches(8):
            notes.append(f"step {step}")
            loss = task.loss(net(batch[0]), batch)
            loss.backward()
            loop.update(step, loss[None], ["all"])
            loop.finish(step, {"losses": loss[None]})
    except ValueError as error:
        return str(error)
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.fixture
def lane(monkeypatch):
    made = NotedLane([])
    monkeypatch.setattr("supernet.training.loop.loop.lane_of", lambda device: made)
    return made


def test_a_cpu_has_no_lane():
    assert lane_of(torch.device("cpu")) is None


def test_the_next_batch_is_on_its_way_before_a_step_and_waited_for_before_its_own(lane, tmp_path):
    trained(tmp_path, Noted(lane.notes, lane), lane.notes)
    expected = ["begin 0", "load 0"]
    for step in range(6):
        following = ["begin 6"] if step == 5 else [f"begin {step + 1}", f"load {step + 1}"]
        expected += [f"wait {step}", *following, f"step {step}"]
    assert lane.notes == expected


def test_a_lane_changes_no_weights_and_no_resumption(tmp_path, monkeypatch):
    plain = trained(tmp_path / "plain", Noted([]), [])
    notes = []
    monkeypatch.setattr("supernet.training.loop.loop.lane_of", lambda device: NotedLane(notes))
    found = trained(tmp_path / "ahead", Noted(notes), notes)
    sorted((tmp_path / "ahead" / "checkpoints").iterdir())[-1].unlink()
    notes.clear()
    again = trained(tmp_path / "ahead", Noted(notes), notes, resume=True)
    assert [note for note in notes if note.startswith("load")] == ["load 4", "load 5"]
    for one, other, third in zip(plain, found, again, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("last", ["broken", "unknown", "missing"])
def test_what_is_wrong_with_a_batch_comes_when_it_is_its_turn(last, tmp_path, monkeypatch):
    ends = []
    for lane in (None, NotedLane([])):
        monkeypatch.setattr("supernet.training.loop.loop.lane_of", lambda device, lane=lane: lane)
        notes = []
        end = trained(tmp_path / f"{lane is None}", Noted([], last=last), notes)
        assert notes == ["step 0", "step 1", "step 2", "step 3"]
        ends.append(str(end))
    assert ends[0] == ends[1]
    if last == "broken":
        assert ends[0] == "image 16 is broken"
    if last == "unknown":
        assert "but there are 2 classes" in ends[0]


class Stand:
    """In the place of `torch.cuda`: streams that note what is asked of them."""

    def __init__(self, notes):
        self.notes, self.current = notes, StandStream("steps", notes)

    def Stream(self, device):
        return StandStream("side", self.notes)

    def current_stream(self, device):
        return self.current

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


@dataclasses.dataclass
class StandStream:
    name: str
    notes: list

    def wait_stream(self, other):
        self.notes.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.notes.append(f"event of {self.name}")
        return f"the event of {self.name}"

    def wait_event(self, event):
        self.notes.append(f"{self.name} waits for {event}")


class OnGpu(torch.Tensor):
    is_cuda = True
    notes: list

    def record_stream(self, stream):
        self.notes.append(f"memory is kept for {stream.name}")


def test_on_a_gpu_a_batch_is_made_on_a_stream_of_its_own_that_the_steps_wait_for(monkeypatch):
    notes = []
    stand = Stand(notes)
    monkeypatch.setattr("supernet.training.loop.ahead.torch.cuda", stand)
    images = torch.zeros(2).as_subclass(OnGpu)
    images.notes = notes

    def work():
        notes.append(f"made on {stand.current.name}")
        return {"images": images, "labels": torch.zeros(2), "plain": 3}

    lane = lane_of(torch.device("cuda", 0))
    coming = lane.begin(work)
    assert notes == ["side waits for steps", "made on side", "event of side"]
    assert stand.current.name == "steps"
    notes.clear()
    lane.wait(coming)
    assert notes == ["steps waits for the event of side", "memory is kept for steps"]


def test_an_interruption_is_not_kept_for_later():
    def batches():
        yield 0
        raise KeyboardInterrupt

    lane = NotedLane([])
    with pytest.raises(KeyboardInterrupt):
        next(ahead(batches(), lane))
