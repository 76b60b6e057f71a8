"""`python -m twinlens` is the command `twinlens`."""

from twinlens.cli.main import main

if __name__ == "__main__":
    main()
