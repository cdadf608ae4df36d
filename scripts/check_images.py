"""`supernet check-images` from a checkout; supernet_cli/check_images.py says what it does."""

from supernet_cli.main import run_script

if __name__ == "__main__":
    run_script("check-images", __file__)
