"""`supernet train-standalone` from a checkout; supernet_cli/train_standalone.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("train-standalone", __file__)
