"Classify images over HTTP, and show a page to drop one on: `python scripts/serve.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['serve', *sys.argv[1:]]))
