"""`supernet measure-latency` from a checkout; supernet_cli/measure_latency.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("measure-latency", __file__)
