"""`supernet synthesise` from a checkout; supernet_cli/synthesise.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("synthesise", __file__)
