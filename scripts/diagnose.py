"""`supernet diagnose` from a checkout; supernet_cli/diagnose.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("diagnose", __file__)
