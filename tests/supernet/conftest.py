import multiprocessing
import time

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(scope="session")
def in_two_processes():
    """Run a function of a module in two processes that are joined by gloo, and return what each gave."""
    return _launch


def _launch(function, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["supernet.artifacts.runs"])
    with context.Manager() as manager:
        results, address = manager.dict(), manager.list()
        processes = [context.Process(target=_join, args=(r, address, results, function, arguments)) for r in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        return [results[0], results[1]]


def _join(rank, address, results, function, arguments):
    torch.set_num_threads(1)
    store = _store(rank, address)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results[rank] = function(*arguments)
    dist.destroy_process_group()


def _store(rank, address):
    """A store on a port that the first process finds free."""
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        address.append(store.port)
        return store
    while not address:
        time.sleep(0.01)
    return dist.TCPStore("127.0.0.1", address[0], 2, is_master=False)
