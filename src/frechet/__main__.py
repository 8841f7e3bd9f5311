"""``python -m frechet``."""

from frechet.report.command import main

if __name__ == "__main__":
    main()
