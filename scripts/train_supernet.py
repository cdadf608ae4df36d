"""`supernet train` from a checkout; supernet_cli/train.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("train", __file__)
