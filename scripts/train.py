"Fine-tune one variant: `python scripts/train.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['train', *sys.argv[1:]]))
