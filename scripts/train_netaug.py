"""`supernet train-netaug` from a checkout; supernet_cli/train_netaug.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("train-netaug", __file__)
