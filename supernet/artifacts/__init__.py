"""What is written and read again: runs, subnets, exported files, and how files are written whole or not at all."""

from typing import TYPE_CHECKING

from supernet.imports import lazily

if TYPE_CHECKING:
    from supernet.artifacts.export import export_onnx, export_program
    from supernet.artifacts.runs import Job, Run, load_run, run_job
    from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet, take_out
    from supernet.artifacts.subnet_config import SubnetConfig

__all__ = [
    "Job",
    "Run",
    "Subnet",
    "SubnetConfig",
    "export_onnx",
    "export_program",
    "load_run",
    "load_subnet",
    "run_job",
    "save_subnet",
    "take_out",
]

__getattr__ = lazily(
    __name__,
    {
        "supernet.artifacts.export": ["export_onnx", "export_program"],
        "supernet.artifacts.runs": ["Job", "Run", "load_run", "run_job"],
        "supernet.artifacts.subnet": ["Subnet", "load_subnet", "save_subnet", "take_out"],
        "supernet.artifacts.subnet_config": ["SubnetConfig"],
    },
)
