"""`python -m utils.search` explains many pairs, to files."""

import argparse

from utils.config import load_config
from utils.errors import message_alone
from utils.figures.folder import SCORES, explain_folder
from utils.trained import load_trained


@message_alone()
def main():
    parser = argparse.ArgumentParser(description="Explain many pairs of image files: maps, pictures and a table.")
    parser.add_argument("--config", help="config file (default: config.yml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--pairs", help="CSV file with columns image1 and image2")
    parser.add_argument("--folders", nargs=2, help="two folders: every image of one beside every image of the other")
    parser.add_argument("--out", required=True, help="folder that is written to; it is gone on with if it is there")
    parser.add_argument("--judged", action="store_true", help="also say how faithful each map is")
    options = parser.parse_args()
    if (options.pairs is None) == (options.folders is None):
        parser.error("name either --pairs or --folders")
    trained = load_trained(load_config(options.config, options.set))
    table = explain_folder(trained, options.pairs or options.folders, options.out, options.judged)
    print(f"{len(table)} pairs: {options.out}/{SCORES}")


if __name__ == "__main__":
    main()
