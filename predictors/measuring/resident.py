"""Run a network in a process of its own and print how many bytes were resident at most.

    python resident.py RUNTIME NETWORK INPUTS THREADS

`predictors.measuring.memory` writes the files and runs this one by its path: it imports nothing of ours, so that the
process holds Python, the runtime and the network alone.
"""

import sys

import numpy as np

RUNS = 3


def main() -> None:
    runtime, network, inputs, threads = sys.argv[1:]
    with np.load(inputs) as file:
        arrays = [file[name] for name in file.files]
    run = RUNTIMES[runtime](network, arrays, int(threads))
    for _ in range(RUNS):
        run()
    print(most_resident())


def most_resident() -> int:
    """Bytes; what the parent had before this process began its program does not count, as it does in getrusage."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def _torch(network, arrays, threads):
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(network).module()
    tensors = [torch.from_numpy(array) for array in arrays]
    return torch.inference_mode()(lambda: module(*tensors))


def _onnxruntime(network, arrays, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    feed = {own.name: array for own, array in zip(session.get_inputs(), arrays)}
    return lambda: session.run(None, feed)


def _openvino(network, arrays, threads):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
    tensors = [openvino.Tensor(array) for array in arrays]
    return lambda: request.infer(tensors)


RUNTIMES = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}

if __name__ == "__main__":
    main()
