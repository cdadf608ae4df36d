"""In the place of `supernet`: writes what each command would, as far as a job looks at it, in no time.

    python stand_in.py FOLDER COMMAND ...

FOLDER/slow holds a number of seconds that each command takes, FOLDER/fail the name of a command that fails. A line for
each start goes to FOLDER/started.
"""

import json
import os
import sys
import time
from pathlib import Path

ARCH = {"width": 8}


def main() -> None:
    control, command, *words = sys.argv[1:]
    control = Path(control)
    with open(control / "started", "a") as file:
        file.write(f"{Path.cwd().name} {command} {os.getpid()}\n")
    if (control / "fail").exists() and (control / "fail").read_text() == command:
        print("half of a sentence")
        sys.exit("error: there is something wrong with 17: say 18")
    if (control / "slow").exists():
        time.sleep(float((control / "slow").read_text()))
    flags = {word: words[index + 1] for index, word in enumerate(words[:-1]) if word.startswith("--")}
    for name, content in written(command, flags, words).items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    print(f"{command} is done")


def written(command, flags, words):
    output = flags.get("--output")
    subnet = {"arch": ARCH, "input_size": [3, 32, 32], "facts": {"macs": 1.5e6, "accuracy": 0.9}}
    if command == "train":
        job = {"job": {"train": {"epochs": int(flags["--epochs"])}}}
        return {f"{output}/config.json": job, f"{output}/supernet.safetensors": "weights"}
    if command in ("measure-latency", "fit-latency"):
        if "--suggest" in flags:
            rows = [f'{index:04}.onnx,"{{""width"": {index}}}",' for index in range(10)]
            manifest = "\n".join(["file,arch,latency_ms", *rows]) + "\n"
            return {"measure/manifest.csv": manifest} | {f"measure/{index:04}.onnx": "x" for index in range(10)}
        return {f"{output}/{flags['--name']}/predictor.json": {}}
    if command == "search":
        name = flags["--predictors"].split("/")[-1]
        header = f'accuracy,{name},"{name}, standard error","{name}, within limit","{name}, measured"\n'
        front = header.replace("\n", ",arch\n") + '0.9,0.2,0.01,0.99,0.21,"{""width"": 8}"\n'
        return {f"{output}/front.csv": front, f"{output}/report.html": "<script>1</script>"}
    if command in ("extract", "finetune", "train-standalone"):
        return {f"{output}/config.json": subnet, f"{output}/model.safetensors": "weights"}
    if command == "quantise":
        row = {"points": 0.5, "standard_error": 0.2, "bytes": 1000, "milliseconds": 0.1}
        return {f"{output}/quantisation.json": {"on_test_images": {"int8": row}}, f"{output}/config.json": subnet}
    if command == "evaluate":
        networks = words[: words.index("--run")]
        row = {"top1": 0.9, "stored_bytes": 4000, "latency_ms": 0.2}
        pairs = [{"network": name, "p_value": 1.0, "standard_error": 0.01} for name in networks[1:]]
        return {flags["--json"]: {"rows": [{"network": name, **row} for name in networks], "paired": pairs}}
    return {}


if __name__ == "__main__":
    main()
