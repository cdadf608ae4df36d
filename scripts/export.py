"""`supernet export` from a checkout; supernet_cli/export.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("export", __file__)
