"""`supernet train-ensemble` from a checkout; supernet_cli/train_ensemble.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("train-ensemble", __file__)
