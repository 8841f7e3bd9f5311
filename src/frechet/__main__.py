"""``python -m frechet``."""

from frechet.report._command import main

if __name__ == "__main__":
    main()
