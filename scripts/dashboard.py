"""`supernet dashboard` from a checkout; supernet_cli/dashboard.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("dashboard", __file__)
