"""Evaluating architectures on Ray workers, on this machine or on a cluster."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from search.evaluator import RayWorker, Scored
from search.problem import Score, placed
from supernet.own_code import modules_from_files
from supernet.space import Arch, SearchSpace
from supernet.training.cluster import check_room
from supernet.training.execution import worker_device

logger = logging.getLogger(__name__)

CRASHES = 3  # of workers on one and the same architecture before it counts as failed


class RayEvaluator:
    """Evaluates on `workers` Ray actors that each hold `scores`, with the supernet and the images that the scores hold.

    The scores go through Ray's object store once, from the CPU, on which they are from then on. Each worker has
    `threads` CPU threads, and `gpus`, from 0 to 1, of a GPU, where it puts the scores. A worker that
    dies is replaced, and what it was evaluating is evaluated again; `retried` says so, a line for each time. An
    architecture that kills `CRASHES` workers on its own has failed.

    A worker gets architectures that are next to each other in the order of `space.encode`, so that they share leading
    layers, but no more than `together` at a time. Values do not depend on which worker evaluates what, if they depend
    on the architecture alone. `by` has the workers evaluate by other scores from then on.

    Uses the running Ray, or joins the cluster at `address`, or starts a local one. Use as a context manager: at the end
    the workers stop, and a Ray that was started here. ValueError if the cluster has too few CPUs or GPUs.
    """

    def __init__(
        self,
        space: SearchSpace,
        scores: Mapping[str, Score],
        workers: int,
        threads: int = 1,
        gpus: float = 0,
        address: str | None = None,
        together: int | None = None,
    ) -> None:
        if workers < 1 or threads < 1:
            raise ValueError(f"there is at least 1 worker of 1 thread, not {workers} of {threads}")
        device = worker_device("auto", gpus)
        import ray

        self.retried: list[str] = []
        self._space = space
        self._together = together
        self._ray = ExitStack()
        self._ray.enter_context(ray_running(address, workers * threads))
        try:
            check_resources(ray.cluster_resources(), workers, threads, gpus)
            for module in modules_from_files():  # workers, which may lack the files, get the code itself
                ray.cloudpickle.register_pickle_by_value(module)
            self._scores = ray.put({name: placed(score, "cpu") for name, score in scores.items()})
            self._worker = ray.remote(RayWorker).options(num_cpus=threads, num_gpus=gpus)
            self._threads, self._device = threads, str(device)
            self._idle = [self._start() for _ in range(workers)]
            ray.get([worker.ready.remote() for worker in self._idle])
        except BaseException:
            self.close()
            raise

    def __call__(self, archs: Sequence[Arch], examples: np.ndarray | None = None) -> Iterator[Scored]:
        import ray

        busy: dict[object, tuple[object, list[int]]] = {}  # by the result that is awaited: the worker, and what it does
        waiting = self._parts(archs)
        crashes: Counter[int] = Counter()
        try:
            while waiting or busy:
                while waiting and self._idle:
                    worker, part = self._idle.pop(), waiting.pop(0)
                    busy[worker.evaluate.remote([archs[index] for index in part], examples)] = worker, part
                (ready,), _ = ray.wait(list(busy), num_returns=1)
                worker, part = busy.pop(ready)
                try:
                    outcomes = ray.get(ready)
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                    self._idle.append(self._start())
                    yield from self._retry(part, crashes, waiting, str(error).strip().splitlines()[0])
                except ray.exceptions.RayTaskError as error:
                    self._idle.append(worker)
                    raise error.cause from None
                else:
                    self._idle.append(worker)
                    yield from (outcome._replace(index=part[outcome.index]) for outcome in outcomes)
        finally:
            for worker, _ in busy.values():  # the caller gave up
                ray.kill(worker)
                self._idle.append(self._start())

    def by(self, scores: Mapping[str, Score]) -> RayEvaluator:
        """The evaluator itself, whose workers hold other `scores` from now on."""
        import ray

        self._scores = ray.put({name: placed(score, "cpu") for name, score in scores.items()})
        held = [worker.hold.remote(self._scores) for worker in self._idle]
        self._idle = [self._alive(worker, done) for worker, done in zip(self._idle, held)]
        return self

    def close(self) -> None:
        import ray

        for worker in getattr(self, "_idle", []):
            ray.kill(worker)
        self._idle = []
        self._ray.close()

    def __enter__(self) -> RayEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self):
        return self._worker.remote(self._scores, self._threads, self._device)

    def _alive(self, worker, done):
        """The idle worker when what it does is `done`, or another in its place if it has died."""
        import ray

        try:
            ray.get(done)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            reason = str(error).strip().splitlines()[0]
            self.retried.append(f"a worker died while it had nothing to do, and was started again: {reason}")
            logger.warning(self.retried[-1])
            return self._start()
        return worker

    def _parts(self, archs: Sequence[Arch]) -> list[list[int]]:
        """Indices of `archs` in parts: long ones first, which share more, short ones last, which end together."""
        order = sorted(range(len(archs)), key=self._space.encode(archs).tolist().__getitem__)
        parts = []
        while order:
            size = min(math.ceil(len(order) / (2 * len(self._idle))), self._together or len(order))
            parts.append(order[:size])
            order = order[size:]
        return parts

    def _retry(self, part: list[int], crashes: Counter[int], waiting: list[list[int]], reason: str) -> Iterator[Scored]:
        self.retried.append(f"a worker died while it evaluated {len(part)} architectures, which are retried: {reason}")
        logger.warning(self.retried[-1])
        half = math.ceil(len(part) / 2)
        if len(part) > 1:
            waiting[:0] = [part[:half], part[half:]]
            return
        crashes.update(part)
        if crashes[part[0]] < CRASHES:
            waiting.insert(0, part)
        else:
            yield Scored(part[0], {}, f"killed its worker {CRASHES} times: {reason}")


@contextmanager
def ray_running(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Ray for as long as the block lasts: the one that runs, or the cluster at `address`, or else one that is started
    on this machine with so many `cpus`, by default all of its own."""
    import ray

    if ray.is_initialized():
        yield
        return
    local = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        yield
    finally:
        ray.shutdown()


def room(available: Mapping[str, float], threads: int, gpus: float) -> int:
    """How many workers a cluster with so many CPUs and GPUs has room for."""
    count = int(available.get("CPU", 0) // threads)
    return min(count, int(available.get("GPU", 0)) * _sharing(gpus)) if gpus else count


def _sharing(gpus: float) -> int:
    """How many workers with the part `gpus` of one share a GPU."""
    return math.floor(1 / gpus + 1e-6)


def check_resources(available: Mapping[str, float], workers: int, threads: int, gpus: float) -> None:
    """ValueError unless a cluster with so many CPUs and GPUs has room for the workers."""
    cpus = {"CPU": workers * threads}
    check_room(available, cpus, f"{workers} workers", "use fewer workers or fewer threads")
    if gpus:
        whole = {"GPU": math.ceil(workers / _sharing(gpus))}  # a worker's part is of a single GPU
        parts = f"{workers} workers with {gpus:g} of a GPU each"
        check_room(available, whole, parts, "use fewer workers or smaller parts")
