"""`supernet doctor` from a checkout; supernet_cli/doctor.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("doctor", __file__)
