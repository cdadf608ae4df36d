"""`supernet zero-cost` from a checkout; supernet_cli/zero_cost.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("zero-cost", __file__)
