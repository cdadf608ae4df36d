"""`supernet compare-devices` from a checkout; supernet_cli/compare_devices.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("compare-devices", __file__)
