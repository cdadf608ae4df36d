"""`supernet serve` from a checkout; supernet_cli/serve.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("serve", __file__)
