"""`python -m kintsugi`: the command line."""

from kintsugi.cli.main import main

if __name__ == "__main__":
    main()
