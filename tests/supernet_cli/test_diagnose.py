import json

import pytest

NAMED = ("resnet10t", "--image-size", "64", "--peak-gmacs", "1", "--bandwidth-gb", "0.5")


def test_a_model_of_timms_on_a_device_elsewhere(command, tmp_path):
    result = command(
        "diagnose", *NAMED, "--precision", "int8", "--limits", "stored_bytes=1e6", "--output", str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert "What holds it back: flash for weights, then" in result.stdout
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert content["exceeded"].keys() == {"stored_bytes"}
    assert content["advice"][0]["stored_bytes"] < content["stored_bytes"]
    assert (tmp_path / "roofline.svg").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limits", "ram=5"), "there is no limit 'ram' to a diagnosis; there are activation_bytes, stored_bytes"),
        (("--arch", "{}"), "--arch and --history are of a training run, and resnet10t is no folder"),
        (("--precision", "int7"), "there is no precision 'int7'; there are fp32"),
    ],
)
def test_bad_input_is_one_line(command, words, message):
    result = command("diagnose", *NAMED, *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_an_unknown_device_names_those_there_are(command, tmp_path):
    result = command("diagnose", "resnet18", "--device", "camera", "--devices", str(tmp_path))
    assert result.returncode == 2
    assert "there is no device 'camera' in" in result.stderr
    assert "only none: leave out --device for this machine, or say --peak-gmacs and --bandwidth-gb" in result.stderr
