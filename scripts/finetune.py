"""`supernet finetune` from a checkout; supernet_cli/finetune.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("finetune", __file__)
