"""`supernet exits` from a checkout; supernet_cli/exits.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("exits", __file__)
