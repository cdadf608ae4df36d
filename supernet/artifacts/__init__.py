"""What is written and read again: runs, subnets, exported files, and how files are written whole or not at all."""
