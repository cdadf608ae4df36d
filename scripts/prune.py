"""`supernet prune` from a checkout; supernet_cli/prune.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("prune", __file__)
