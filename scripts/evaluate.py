"""`supernet evaluate` from a checkout; supernet_cli/evaluate.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("evaluate", __file__)
