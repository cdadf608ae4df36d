"""`python -m supernet_cli` is `supernet`: for `torchrun -m`, and where no command is installed."""

from supernet_cli.main import main

if __name__ == "__main__":
    main()
