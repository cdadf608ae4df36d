"""`supernet find-ticket` from a checkout; supernet_cli/find_ticket.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("find-ticket", __file__)
