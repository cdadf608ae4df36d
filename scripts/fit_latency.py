"""`supernet fit-latency` from a checkout; supernet_cli/fit_latency.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("fit-latency", __file__)
