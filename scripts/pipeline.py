"""`supernet pipeline` from a checkout; supernet_cli/pipeline.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("pipeline", __file__)
