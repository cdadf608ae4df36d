"""The command `supernet` and its subcommands, a module each; scripts/ has a thin shell over each for a checkout."""
