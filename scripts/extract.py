"""`supernet extract` from a checkout; supernet_cli/extract.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("extract", __file__)
