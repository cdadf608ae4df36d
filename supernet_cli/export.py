"""Make a saved subnet ready to be passed on: files for more runtimes, a model card, and a place on a hub.

    supernet export --subnet subnets/mine                                    # a model card, README.md
    supernet export --subnet subnets/mine --to openvino executorch litert
    supernet export --subnet subnets/mine --to tensorrt                      # for the GPU of this machine
    supernet export --subnet subnets/mine --push USER/NAME                   # private; --public for everybody

Writes into the subnet's folder what it lacks: with --to model.xml and model.bin (OpenVINO IR), model.pte (ExecuTorch,
by XNNPACK), model.tflite (LiteRT) and model.engine (TensorRT, for this GPU and version alone), in fp32 and for one
example, each run here and refused where its outputs are not the module's; and README.md, which says what the subnet is,
what it costs on which device, how it was found, and how it is loaded.
`timm.create_model("local-dir:FOLDER", pretrained=True)` does where timm can build the network by a name and arguments,
which is said. Nothing leaves this machine without --push, which takes the login of `hf auth login` and sends the files
that this package wrote, and no others. Half a minute for ExecuTorch and for LiteRT, seconds for the rest; the extras
are `openvino`, `executorch`, `litert` and `tensorrt`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from predictors.measuring.runtimes import random_inputs
from supernet.artifacts.converters import CONVERTERS, convert
from supernet.artifacts.model_card import FILE as CARD
from supernet.artifacts.model_card import model_card, write_card
from supernet.artifacts.subnet import load_subnet
from supernet.errors import first_line
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags

FILES = (
    *("config.json", "model.safetensors", CARD, "model.onnx", "model.int8.onnx", "model.fp16.onnx", "model.pt2"),
    *("model.xml", "model.bin", "model.pte", "model.tflite", "model.engine", "tokenizer.json"),
)
"""What is pushed, of what there is."""


@dataclass(frozen=True)
class Arguments:
    subnet: Path
    """Folder of the subnet."""
    to: tuple[str, ...] = ()
    """Formats to write: openvino, executorch, litert and tensorrt."""
    name: str | None = None
    """What the card calls it; by default the folder's name."""
    push: str | None = None
    """Repository of the Hugging Face hub that gets the files, USER/NAME; made if it is not there."""
    public: bool = False
    """Let everybody see that repository, where it is made now."""
    space: str | None = None
    """The subnet's space, said again if it is code of your own: path/to/file.py:function."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if unknown := [name for name in arguments.to if name not in CONVERTERS]:
        raise ValueError(f"there is no format {unknown[0]!r}; there are {', '.join(CONVERTERS)}")
    if arguments.push is not None and len(arguments.push.strip("/").split("/")) != 2:
        raise ValueError(f"a repository is USER/NAME, unlike {arguments.push!r}")
    if arguments.public and arguments.push is None:
        raise ValueError("--public is of the repository that --push USER/NAME makes: say that, too")
    folder = arguments.subnet
    model, config = load_subnet(folder, space=arguments.space)
    inputs = random_inputs(config.example(), 1) if arguments.to else ()
    agreements = {}
    for name in arguments.to:
        file = CONVERTERS[name].file
        agreements[file] = convert(model, name, folder, inputs)
        say(f"{file}: outputs differ by at most {agreements[file].difference:.1e}")
    by_timm = "architecture" in json.loads((folder / "config.json").read_text())
    others = [file for file in FILES if file not in (CARD, "config.json", "model.safetensors")]
    files = {file: agreements.get(file) for file in others if (folder / file).exists()}
    called = arguments.name or folder.resolve().name
    write_card(folder, model_card(config, called, by_timm=by_timm, files=files))
    say(
        f'timm.create_model("local-dir:{folder}", pretrained=True) gives it'
        if by_timm
        else "timm cannot build it by a name and arguments: supernet.load_subnet gives it"
    )
    if arguments.push:
        sent = [*files, "config.json", "model.safetensors", CARD]
        say(f"It is at {push(folder, arguments.push, sent, arguments.public)}.")
    else:
        say(f"The card is {folder / CARD}.")


def push(folder: Path, repository: str, files: Sequence[str], public: bool) -> str:
    """Send `files` of `folder` to a repository of the hub, made private unless `public` if it is not there; its
    address. ConnectionError, in one line, if the hub cannot be reached or refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(library_name="supernet")
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Add the subnet",
        )
    except LocalTokenNotFoundError:
        raise ConnectionError("the hub asks who you are: hf auth login, or set HF_TOKEN") from None
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(f"{repository} cannot be pushed to: {first_line(error)}") from error
    return str(made)


def say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
