"""`supernet quantise` from a checkout; supernet_cli/quantise.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("quantise", __file__)
