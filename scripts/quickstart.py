"""`supernet quickstart` from a checkout; supernet_cli/quickstart.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("quickstart", __file__)
