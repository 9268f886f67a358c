"""`python -m kotoe` is `kotoe`."""

from kotoe.cli import main

if __name__ == "__main__":
    main()
