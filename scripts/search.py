"""`supernet search` from a checkout; supernet_cli/search.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("search", __file__)
