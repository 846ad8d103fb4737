"""`python -m utils.data --sample FOLDER`: make the bundled sample by hand."""

import argparse

from utils.data.shapes import SAMPLE_FOLDER, make_sample


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", default=SAMPLE_FOLDER, metavar="FOLDER", help="where it is made (%(default)s)")
    make_sample(parser.parse_args().sample)


if __name__ == "__main__":
    main()
