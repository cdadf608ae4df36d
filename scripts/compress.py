"""`supernet compress` from a checkout; supernet_cli/compress.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("compress", __file__)
