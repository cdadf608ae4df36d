"""`supernet predict` from a checkout; supernet_cli/predict.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("predict", __file__)
