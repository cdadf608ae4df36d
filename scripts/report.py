"""`supernet report` from a checkout; supernet_cli/report.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("report", __file__)
