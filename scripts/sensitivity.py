"""`supernet sensitivity` from a checkout; supernet_cli/sensitivity.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("sensitivity", __file__)
