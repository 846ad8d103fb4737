"""`python -m utils.data`: what is wrong with the images of config.yml, before training. `--sample FOLDER` makes the
bundled sample by hand.
"""

import argparse

from utils.config import load_config
from utils.data.audit import audit
from utils.data.pairs import load_images
from utils.data.shapes import SAMPLE_FOLDER, ensure_sample, make_sample
from utils.errors import message_alone


@message_alone()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="config file (default: config.yml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--sample", nargs="?", const=SAMPLE_FOLDER, metavar="FOLDER", help="make the sample in FOLDER")
    options = parser.parse_args()
    if options.sample:
        make_sample(options.sample)
        return
    config = load_config(options.config, options.set)
    ensure_sample(config.data_path)
    print(audit(*load_images(config)))


if __name__ == "__main__":
    main()
