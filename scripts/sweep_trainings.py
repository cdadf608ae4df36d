"""`supernet sweep-trainings` from a checkout; supernet_cli/sweep_trainings.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("sweep-trainings", __file__)
